"""The command line as a function."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from click.testing import Result
from typer.testing import CliRunner

from marrowscope.cli import app


@pytest.fixture
def invoke() -> Callable[..., Result]:
    """Give a function that runs a command; an error of ours becomes its exception."""
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
