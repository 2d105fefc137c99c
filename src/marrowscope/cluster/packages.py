"""The packages of the extra ``cluster``, loaded when they are needed."""

from __future__ import annotations

import importlib
import os
from typing import Any

from marrowscope.errors import MissingExtraError

_PURPOSE = "Predicting on a cluster"


def arrow(module: str) -> Any:
    """A module of pyarrow.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        return importlib.import_module(f"pyarrow.{module}")
    except ImportError:
        raise MissingExtraError("pyarrow", "cluster", _PURPOSE) from None


def ray() -> Any:
    """Ray, with Ray Data.

    Raises:
        MissingExtraError: It is not installed.
    """
    # Set before Ray is loaded: nothing about a job is to be sent anywhere.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        importlib.import_module("ray.data")
        return importlib.import_module("ray")
    except ImportError:
        raise MissingExtraError("ray[data]", "cluster", _PURPOSE) from None
