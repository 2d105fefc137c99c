"""Run the notebooks, and put what they show of phantoms into the documentation.

    python scripts/notebooks.py FOLDER                      # all, one after the other, in FOLDER/notebooks
    python scripts/notebooks.py FOLDER resnet50-14c         # one
    python scripts/notebooks.py FOLDER --pages              # and docs/notebooks/*.md with their pictures
    MARROWSCOPE_NOTEBOOK=cells MARROWSCOPE_DATA=DATA python scripts/notebooks.py FOLDER

The notebooks of the repository are stored without outputs; their copies in FOLDER/notebooks have them. Runs are in
FOLDER/notebooks/work, and go on where they were stopped.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import shutil
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from PIL import Image

from marrowscope.files import atomic_path, make_folder, write_text

REPOSITORY = Path(__file__).resolve().parent.parent
NAMES = ("resnet50-14c", "vit-imageclass-14c")
PICTURES = REPOSITORY / "docs" / "images" / "notebooks"
PAGES = REPOSITORY / "docs" / "notebooks"
MOST_BYTES = 1_500_000
"""Of one page's pictures together."""

NOT_RUN = "<!-- not run: tests/test_notebooks.py runs the notebook that this page shows -->"


def run(name: str, folder: Path) -> Path:
    """Run a notebook from top to bottom in `folder`/notebooks; gives its copy with outputs."""
    place = folder / "notebooks"
    make_folder(place)
    recipes = folder / "recipes"
    if not recipes.exists():
        shutil.copytree(REPOSITORY / "recipes", recipes)
    notebook = nbformat.read(REPOSITORY / "notebooks" / f"{name}.ipynb", as_version=4)
    client = NotebookClient(
        notebook, timeout=None, kernel_name="python3", resources={"metadata": {"path": str(place.resolve())}}
    )
    out = place / f"{name}.ipynb"
    try:
        client.execute()
    except CellExecutionError as e:
        raise SystemExit(f"{name}: a cell failed; see {out}\n{e}") from None
    finally:
        with atomic_path(out) as path:
            nbformat.write(notebook, path)
    return out


class Page:
    """A page of the documentation that shows a notebook with its outputs."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: list[str] = []
        self.pictures: dict[str, bytes] = {}
        self.heading = name

    def add(self, cell: Any) -> None:
        """Add a cell."""
        if cell.cell_type == "markdown":
            self._text(cell.source)
            return
        self.lines += [NOT_RUN, "```python", cell.source, "```", ""]
        for output in cell.outputs:
            if output.output_type == "stream":
                if output.name == "stdout":
                    self._printed(output.text)
            elif output.output_type in {"display_data", "execute_result"}:
                self._shown(output.data)

    def _text(self, source: str) -> None:
        first = not self.lines
        for line in source.splitlines():
            self.heading = line.lstrip("# ") if line.startswith("#") else self.heading
            # Pages lie beside each other as the notebooks do, and one folder nearer to the other pages.
            self.lines.append(line.replace("](../docs/", "](../").replace(".ipynb)", ".md)"))
            if first and line.startswith("# "):
                shown = (
                    f"*The notebook `notebooks/{self.name}.ipynb`, as it ran on phantoms: cells that a program drew.*"
                )
                self.lines += ["", shown]
        self.lines.append("")

    def _printed(self, text: str) -> None:
        self.lines += ["```text", text.rstrip("\n"), "```", ""]

    def _shown(self, data: dict[str, str]) -> None:
        if "text/markdown" in data:
            self.lines += [data["text/markdown"].rstrip("\n"), ""]
        elif "image/svg+xml" in data:
            self._picture("svg", data["image/svg+xml"].encode())
        elif "image/png" in data:
            self._picture("jpg", as_jpeg(base64.b64decode(data["image/png"])))
        else:
            self._printed(data["text/plain"])

    def _picture(self, suffix: str, content: bytes) -> None:
        name = f"{self.name}-{len(self.pictures) + 1:02d}.{suffix}"
        self.pictures[name] = content
        self.lines += [f"![{self.heading}](../images/notebooks/{name})", ""]

    def write(self) -> None:
        """Write the page and its pictures, in the place of those that were there."""
        size = sum(map(len, self.pictures.values()))
        if size > MOST_BYTES:
            raise SystemExit(f"The pictures of {self.name} have {size:,} bytes; allowed are {MOST_BYTES:,}.")
        make_folder(PICTURES)
        for old in PICTURES.glob(f"{self.name}-*"):
            old.unlink()
        for name, content in self.pictures.items():
            with atomic_path(PICTURES / name) as path:
                path.write_bytes(content)
        write_text(PAGES / f"{self.name}.md", "\n".join(self.lines).rstrip("\n") + "\n")


def as_jpeg(png: bytes) -> bytes:
    """A tenth of the bytes; what the sheets show is JPEG anyway."""
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        image.convert("RGB").save(buffer, "JPEG", quality=80, optimize=True)
    return buffer.getvalue()


def write_page(executed: Path) -> None:
    """Write the page of a notebook with outputs."""
    page = Page(executed.stem)
    for cell in nbformat.read(executed, as_version=4).cells:
        page.add(cell)
    page.write()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to work")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"out of {', '.join(NAMES)}; default: all")
    parser.add_argument("--pages", action="store_true", help="write the pages of the documentation")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(NAMES):
        parser.error(f"unknown notebook {min(unknown)!r}; allowed: {', '.join(NAMES)}")
    if arguments.pages and os.environ.get("MARROWSCOPE_NOTEBOOK", "phantoms") != "phantoms":
        parser.error("--pages shows phantoms alone: no picture in the repository may show a real cell")
    for name in arguments.names or NAMES:
        executed = run(name, arguments.folder)
        print(executed)
        if arguments.pages:
            write_page(executed)


if __name__ == "__main__":
    main()
