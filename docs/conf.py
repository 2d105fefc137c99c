"""Sphinx: `make docs` builds the site strictly and without a network."""

from __future__ import annotations

import ast
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
    "cells", "config", "schema", "errors", "images", "data.phantom", "data.sources", "data.classmap", "data.index",
    "data.audit", "data.split", "data.folds", "data.published", "show", "augment", "datasets", "models", "train",
    "train.sweep", "fit", "score", "strangers", "trials", "holdout", "evaluate", "analysis", "features", "triage",
    "explain", "occlusion", "report", "export", "modelcards", "infer", "cluster", "differential", "doctor",
)  # fmt: skip


WHOLE = {
    "schema", "train", "evaluate", "report", "export", "infer", "explain", "differential", "analysis", "cluster",
}  # fmt: skip
"""Packages whose public names come from modules within."""

STATUSES = """\
Every command ends with one of these statuses:

| status | meaning |
|---|---|
| 0 | done |
| 1 | `doctor`: something must be mended |
| 2 | wrong input or options; one message says what is wrong, what is allowed, and what to do |
| 3 | done, but some files could not be used; each has its row with the reason |
| 130 | stopped, by Ctrl-C or `--limit-time`; the same command goes on, `train` and `predict` with `--resume` |
"""


def cli_page() -> str:
    """Every command with its help, as the program prints it."""
    from typer.main import get_command
    from typer.testing import CliRunner

    from marrowscope.cli import app

    runner = CliRunner(env={"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"})
    out = ["# Command line", "", "What `marrowscope COMMAND --help` prints, command by command.", "", STATUSES]

    def add(names: list[str], command: Any) -> None:
        arguments = [*names, "--help"]
        shown = runner.invoke(app, arguments, prog_name="marrowscope", catch_exceptions=False).stdout
        out.extend([f"## {' '.join(names)}", "", "```text", shown.strip(), "```", ""])
        for name, inner in getattr(command, "commands", {}).items():
            add([*names, name], inner)

    for name, command in getattr(get_command(app), "commands", {}).items():
        add([name], command)
    return "\n".join(out)


def models_page() -> str:
    """The cards of the models that come with the package, as `marrowscope models --card` prints them."""
    from marrowscope.modelcards import bundled_models, card_line, card_markdown

    out = ["# Model cards", "", "Of the models that come with the package, from the cards that their files carry.", ""]
    for model in bundled_models():
        card = card_markdown(model.card)
        out += [
            re.sub(r"^#", "##", card, flags=re.MULTILINE),
            "In the list of models:",
            "",
            f"> {card_line(model)}",
            "",
        ]
    return "\n".join(out)


def map_page() -> str:
    """Every module with the first line of its docstring."""
    package = Path(marrowscope.__file__).parent
    out = [
        "# The map of the package",
        "",
        "Every module, by the first line of its docstring. CONTRIBUTING has the floors:",
    ]
    out += ["what each may import.", "", "| module | what it is |", "|---|---|"]
    for path in sorted(package.rglob("*.py")):
        name = ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__")
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        first = (text.splitlines() or [""])[0].replace("|", "\\|")
        out.append(f"| `{name.removeprefix('marrowscope.')}` | {first} |")
    return "\n".join(out) + "\n"


def python_page() -> str:
    """The public modules, from their docstrings."""
    present = {m.name.removeprefix("marrowscope.") for m in pkgutil.walk_packages(marrowscope.__path__, "marrowscope.")}
    out = ["# Python", "", "The functions behind the commands. Imports point down: see the map in CONTRIBUTING.", ""]
    for name in PUBLIC:
        if name in present:
            block = ["```{eval-rst}", f".. automodule:: marrowscope.{name}", "   :members:", "   :imported-members:"]
            if name not in WHOLE:
                block.pop()
            if name == "modelcards":
                block.append("   :exclude-members: BundledModel")  # its `bytes` would be taken for the type
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
write_if_changed(HERE / "reference" / "models.md", models_page())
write_if_changed(HERE / "reference" / "map.md", map_page())
