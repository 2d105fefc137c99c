"""How the classes of another collection are called here: a small TOML file.

    [classes]
    "neutrophil/BNE_*" = "NGB"     # by folder and file name
    "neutrophil/SNE_*" = "NGS"
    "eosinophil"       = "EOS"     # a whole folder; in a table, the label
    "platelet"         = "drop"    # left out

A name without ``/`` is that of a folder anywhere above a picture, or a table's label. In a name with ``/`` the last
piece is a pattern for the file, those before it are for the folders right above. ``*`` and ``?`` are wild cards; upper
and lower case differ. The nearest folder wins, and there a pattern with more pieces. A folder that is named by a class
code needs no entry.
"""

from __future__ import annotations

import fnmatch
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from marrowscope.cells import BY_CODE
from marrowscope.errors import DataError, FileFormatError

DROP = "drop"


@dataclass(frozen=True)
class ClassMap:
    """Pattern -> class code, or `DROP`."""

    entries: Mapping[str, str]

    def find(self, name: str) -> tuple[str, str] | None:
        """The code for a picture of this relative name (or a table's label), and the entry that says so.

        Raises:
            DataError: Entries that are equally near name different classes.
        """
        parts = name.split("/")
        best: dict[str, str] = {}
        rank = (0, 0)
        for pattern, code in self.entries.items():
            here = _rank(pattern.split("/"), parts)
            if here is None or here < rank:
                continue
            if here > rank:
                best, rank = {}, here
            best[code] = pattern
        # A folder nearer to the picture that is named by a class code speaks for itself.
        own = max((i for i, folder in enumerate(parts[:-1], 1) if folder in BY_CODE), default=0)
        if own > rank[0]:
            return None
        if len(best) > 1:
            said = ", ".join(f"{p!r} = {c!r}" for c, p in best.items())
            raise DataError(f"The class map says two things of {name!r}: {said}. Make one of them more exact.")
        return next(iter(best.items()), None)


def _rank(pattern: list[str], parts: list[str]) -> tuple[int, int] | None:
    """How near a pattern is to a name: (depth of the folder that it fits, number of its pieces); None if it doesn't."""
    if len(pattern) > 1:
        if len(pattern) > len(parts):
            return None
        fits = all(fnmatch.fnmatchcase(x, p) for x, p in zip(parts[-len(pattern) :], pattern, strict=True))
        return (len(parts) - 1, len(pattern)) if fits else None
    folders = parts[:-1] or parts  # a label stands alone
    depths = [i for i, folder in enumerate(folders, 1) if fnmatch.fnmatchcase(folder, pattern[0])]
    return (depths[-1], 1) if depths else None


def read_class_map(path: Path) -> ClassMap:
    """Read a class map.

    Raises:
        FileFormatError: Not TOML, without a table ``classes``, or with a value that is no class code.
    """
    try:
        with Path(path).open("rb") as f:
            document = tomllib.load(f)
    except OSError as e:
        raise FileFormatError(f"Can't read the class map {path}: {e.strerror or e}.") from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise FileFormatError(f"The class map {path} is not valid TOML: {e}.") from None
    classes = document.get("classes")
    if set(document) != {"classes"} or not isinstance(classes, dict) or not classes:
        raise FileFormatError(
            f'The class map {path} must have one table [classes], with lines such as "neutrophil/BNE_*" = "NGB"; '
            f"it has {', '.join(document) or 'nothing'}."
        )
    wrong = [f"{k!r} = {v!r}" for k, v in classes.items() if v != DROP and v not in BY_CODE]
    if wrong:
        raise FileFormatError(
            f"The class map {path} names unknown classes: {', '.join(wrong[:10])}. "
            f"Allowed: {' '.join(sorted(BY_CODE))}, and {DROP}."
        )
    return ClassMap(classes)
