"""Every error that marrowscope raises on purpose.

    MarrowscopeError                 anything the user can mend; the command line prints it and ends with status 2
    ├── ImageError                   one picture can't be used (also kept as its row's `status`)
    ├── DataError                    a folder or collection holds nothing usable, or holds the unknown
    ├── FileFormatError              index.csv, split.csv, predictions.csv, ... is not what it should be
    ├── SplitError                   a split can't be drawn, or does not fit its index or data
    ├── RecipeError                  a recipe has unknown keys or values that are not allowed
    ├── ModelError                   a model file, a model name or its weights can't be used
    ├── OutputError                  an output can't be written (read-only, disk full, exists)
    ├── TrainingError                training can't go on (run folder in use, another recipe)
    │   └── DivergedError            the loss or its gradient is not finite any more
    ├── ServiceError                 the service can't be set up as told, or its store is not usable
    ├── ClusterError                 a cluster can't be reached, or its machines can't do the work
    │   └── StoreError               a store of objects can't be reached, or does not let us in
    └── MissingExtraError            an optional dependency is needed and not installed

A message names the file or field, what is allowed, and what to do.
"""

from __future__ import annotations


class MarrowscopeError(Exception):
    """Base of all errors that the user can mend."""


class ImageError(MarrowscopeError):
    """A picture can't be used; the message is short, so that it fits a table cell."""


class DataError(MarrowscopeError):
    """A data folder holds nothing usable, or something unknown."""


class FileFormatError(MarrowscopeError):
    """A file that passes between stages is not what its schema says."""


class SplitError(MarrowscopeError):
    """A split can't be drawn, or does not fit the index or the data."""


class RecipeError(MarrowscopeError):
    """A recipe has unknown keys or values that are not allowed; the message lists all of them."""


class ModelError(MarrowscopeError):
    """A model file, a model name or its weights can't be used."""


class OutputError(MarrowscopeError):
    """An output can't be written."""


class TrainingError(MarrowscopeError):
    """Training can't start or go on."""


class DivergedError(TrainingError):
    """The loss or its gradient is not finite any more."""


class ServiceError(MarrowscopeError):
    """The service can't be set up as told, or its store is not usable."""


class ClusterError(MarrowscopeError):
    """A cluster can't be reached, or its machines can't do the work."""


class StoreError(ClusterError):
    """A store of objects can't be reached, or does not let us in."""


class MissingExtraError(MarrowscopeError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed. "
            f"Install it with: pip install 'marrowscope[{extra}]'"
        )
