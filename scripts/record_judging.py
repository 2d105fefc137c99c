"""Judge runs and write what is found into the documentation: all figures, tables and charts by one command.

    python scripts/record_judging.py best=runs/marrow8-vit resnet50=runs/marrow8-resnet50 [--robustness 256]
        [--explained 100] [--steps 12] [--data DATA] [--bf16] [--only evaluate analyse explain write]

For each NAME=RUN it runs `marrowscope evaluate --novelty --robustness`, `analyse` and `explain --test` (a trial of
robustness that was stopped goes on where it was), and then fills docs/*.md between the lines

    <!-- record: NAME PART -->    and    <!-- end of record -->

where PART is one of model, headline, trust, novelty, robustness, errors, explanations and charts. Charts go to
docs/images/NAME as SVG; none of them shows a cell. `--only write` takes what the run folders hold already.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import judging_tables
from explanation_figures import tables

from marrowscope.errors import MarrowscopeError
from marrowscope.files import write_text
from marrowscope.report import write_charts
from marrowscope.schema import Analysis, Card, Document, Evaluation, ExplanationTests

DOCS = Path(__file__).parent.parent / "docs"
STEPS = ("evaluate", "analyse", "explain", "write")
D = TypeVar("D", bound=Document)
BLOCK = re.compile(r"(<!-- record: (\S+) (\S+) -->\n).*?(<!-- end of record -->)", re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN")
    parser.add_argument("--robustness", default="all", help="test cells that are changed: a number, or all")
    parser.add_argument(
        "--explained", type=int, default=100, help="test cells, and phantoms, that methods are tested on"
    )
    parser.add_argument("--data", type=Path, help="folder of images, where it has moved since training")
    parser.add_argument("--steps", type=int, default=12, help="explain: windows of occlusion a side")
    parser.add_argument("--bf16", action="store_true", help="explain: answers in bf16, where the processor has it")
    parser.add_argument("--only", nargs="+", choices=STEPS, default=STEPS)
    parser.add_argument("--docs", type=Path, default=DOCS)
    arguments = parser.parse_args()
    if not all(re.fullmatch(r"[a-z0-9-]+=.+", a) for a in arguments.runs):
        parser.error("give each run as NAME=RUN, the name in lower case")
    runs = {name: Path(path) for name, _, path in (a.partition("=") for a in arguments.runs)}
    try:
        for run in runs.values():
            for command in commands(run, arguments):
                if command[0] in arguments.only:
                    subprocess.run([sys.executable, "-m", "marrowscope.cli", *command], check=True)  # noqa: S603
        if "write" in arguments.only:
            write(runs, arguments.docs)
    except subprocess.CalledProcessError as e:
        raise SystemExit(e.returncode) from None
    except MarrowscopeError as e:
        raise SystemExit(str(e)) from None


def commands(run: Path, arguments: argparse.Namespace) -> list[list[str]]:
    """What is run for one run folder, without the program's name."""
    data = [] if arguments.data is None else ["--data", str(arguments.data)]
    cells = ["--cells", str(arguments.explained), "--steps", str(arguments.steps)]
    bf16 = ["--bf16"] if arguments.bf16 else []
    return [
        ["evaluate", str(run), "--novelty", "--robustness", arguments.robustness, *data],
        ["analyse", str(run), *data],
        ["explain", str(run), "--test", *cells, *bf16, *data],
    ]


def write(runs: dict[str, Path], docs: Path) -> None:
    """Fill the blocks of all pages; a block of a run that is not given stays as it is."""
    for page in sorted(docs.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        filled = BLOCK.sub(lambda m: _filled(m, runs, docs), text)
        if filled != text:
            write_text(page, filled)
            print(page)


def _filled(block: re.Match[str], runs: dict[str, Path], docs: Path) -> str:
    start, name, part, end = block.groups()
    if name not in runs:
        return block.group()
    if part == "charts":
        return f"{start}\n{charts(runs[name], docs / 'images' / name)}\n{end}"
    if part not in PARTS:
        raise SystemExit(f"The part {part!r} of a record is unknown; allowed: {' '.join((*PARTS, 'charts'))}.")
    return f"{start}\n{PARTS[part](runs[name]).strip()}\n\n{end}"


def charts(run: Path, folder: Path) -> str:
    """Write the charts anew, and show them with their alternatives."""
    out = []
    with tempfile.TemporaryDirectory() as temporary:
        files = write_charts(run, Path(temporary))
        listed = (Path(temporary) / "README.md").read_text(encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)  # charts that are no more
        folder.mkdir(parents=True)
        for file in files:
            shutil.copyfile(file, folder / file.name)
    for title, alternative, name in re.findall(r"^## (.+)\n\n!\[(.+)\]\(([\w-]+\.svg)\)$", listed, re.MULTILINE):
        out.append(f"**{title}**\n\n![{alternative}](images/{folder.name}/{name})\n")
    return "\n".join(out)


def _of(kind: type[D], name: str, command: str, part: Callable[[D], str]) -> Callable[[Path], str]:
    """A part of a page out of one document of the run folder; where there is none, the command that makes it."""

    def filled(run: Path) -> str:
        if not (run / name).is_file():
            return f"Not recorded yet (`marrowscope {command}`)."
        return part(kind.read(run / name))

    return filled


def model(run: Path) -> str:
    """Which model a record is of."""
    card = Card.read(run / "card.json")
    epochs = " and ".join(f"{m.best_epoch} of {m.epochs}" for m in card.members or (card,))
    return (
        f"`{card.name}`: {card.architecture}, {card.preprocessing.size} px, {card.parameters:,} parameters, epoch "
        f"{epochs}; weights SHA-256 {card.weights_sha256[:16]}…; {card.program}."
    )


PARTS: dict[str, Callable[[Path], str]] = {
    **{
        name: _of(Evaluation, "evaluation.json", "evaluate RUN", getattr(judging_tables, name))
        for name in ("headline", "trust", "novelty", "robustness")
    },
    "model": model,
    "errors": _of(Analysis, "analysis.json", "analyse RUN", judging_tables.errors),
    "explanations": _of(ExplanationTests, "explanation-tests.json", "explain RUN --test", tables),
}


if __name__ == "__main__":
    main()
