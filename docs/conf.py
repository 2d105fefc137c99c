"""Sphinx: `make docs` builds the site strictly and without a network."""

from __future__ import annotations

import pkgutil
import re
from pathlib import Path
from typing import Any

import marrowscope

HERE = Path(__file__).parent

project = "marrowscope"
author = "The marrowscope authors"
copyright = "The marrowscope authors, MIT licence"  # noqa: A001  the name is Sphinx's
version = release = marrowscope.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build", "README.md"]
html_theme = "furo"
html_title = f"marrowscope {version}"
html_static_path: list[str] = []
html_theme_options = {"footer_icons": [], "source_edit_link": ""}
html_show_sphinx = False
templates_path: list[str] = []

# A page may be read in the repository too, so links go to files; headings are linked to as the code host does.
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "deflist"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

nitpicky = False

# Modules whose public names are the package's Python interface, in the order of the work.
PUBLIC = (
    "cells", "config", "schema", "errors", "images", "data.phantom", "data.index", "data.audit", "data.split",
    "data.folds", "data.published", "augment", "datasets", "models", "train", "score", "evaluate", "triage", "explain",
    "occlusion", "report", "export", "infer", "differential", "show", "doctor",
)  # fmt: skip


def cli_page() -> str:
    """Every command with its help, as the program prints it."""
    from typer.main import get_command
    from typer.testing import CliRunner

    from marrowscope.cli import app

    runner = CliRunner(env={"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"})
    out = ["# Command line", "", "What `marrowscope COMMAND --help` prints, command by command.", ""]
    for name in getattr(get_command(app), "commands", {}):
        shown = runner.invoke(app, [name, "--help"], prog_name="marrowscope", catch_exceptions=False).stdout
        out += [f"## {name}", "", "```text", shown.strip(), "```", ""]
    return "\n".join(out)


def python_page() -> str:
    """The public modules, from their docstrings."""
    present = {m.name.removeprefix("marrowscope.") for m in pkgutil.walk_packages(marrowscope.__path__, "marrowscope.")}
    out = ["# Python", "", "The functions behind the commands. Imports point down: see the map in CONTRIBUTING.", ""]
    for name in PUBLIC:
        if name in present:
            block = ["```{eval-rst}", f".. automodule:: marrowscope.{name}", "   :members:", "   :imported-members:"]
            if name not in {"schema", "train", "evaluate", "report", "export", "infer", "explain", "differential"}:
                block.pop()
            out += [f"## marrowscope.{name}", "", *block, "```", ""]
    return "\n".join(out)


def write_if_changed(path: Path, text: str) -> None:
    """So that a second build has nothing to do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def setup(app: Any) -> None:
    """The tables of a module's docstring are plain text, set apart by their indentation."""

    def literal(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
        if what != "module":
            return
        out: list[str] = []
        inside = False
        for line in lines:
            table = line.startswith("    ") or (bool(line) and bool(re.match(r"[\w.]+  +\S", line)))
            if table and not inside:
                out += ["", "::", ""]
            elif inside and line and not table:
                out.append("")
            inside = table or (inside and not line)
            out.append(f"    {line}" if table else line)
        lines[:] = out

    app.connect("autodoc-process-docstring", literal)


write_if_changed(HERE / "reference" / "cli.md", cli_page())
write_if_changed(HERE / "reference" / "python.md", python_page())
