"""The command line: one thin function a command; what it needs is imported when it runs."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from marrowscope import __version__
from marrowscope.errors import MarrowscopeError

if TYPE_CHECKING:
    from marrowscope.schema import Evaluation

EXIT_BAD_INPUT = 2
EXIT_SOME_FAILED = 3
EXIT_STOPPED = 130

app = typer.Typer(
    name="marrowscope",
    help="Classify single cells of bone-marrow smears. Not a medical device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class PartName(StrEnum):
    """Parts of a split."""

    train = "train"
    val = "val"
    test = "test"


def main() -> None:
    """Entry point: errors that the user can mend become one message and status 2."""
    try:
        app()
    except MarrowscopeError as e:
        typer.echo(f"Error: {e}", err=True)
        sys.exit(EXIT_BAD_INPUT)
    except KeyboardInterrupt:
        typer.echo("Interrupted.", err=True)
        sys.exit(EXIT_STOPPED)
    except BrokenPipeError:
        # The reader of our output went away (`| head`); Python would complain again when it flushes at exit.
        sys.stdout = None
        sys.exit(1)


@contextlib.contextmanager
def _bar(description: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error, where that is a terminal; gives the function (done, total) that moves it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task(description, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def _need_torch(purpose: str) -> None:
    from importlib.util import find_spec

    from marrowscope.errors import MissingExtraError

    for package in ("torch", "timm", "lightning_fabric", "safetensors"):
        if find_spec(package) is None:
            raise MissingExtraError(package, "train", purpose)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"marrowscope {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    pass


@app.command()
def phantom(
    out: Annotated[Path, typer.Argument(help="Folder to make: one folder a class inside.")],
    per_class: Annotated[int, typer.Option(help="Pictures of each class.")] = 120,
    seed: Annotated[int, typer.Option(help="Other seeds draw other cells.")] = 0,
    classes: Annotated[str, typer.Option(help="Class set, or codes such as BLA,LYT.")] = "marrow-14",
    masks: Annotated[bool, typer.Option("--masks", help="Also write nucleus and cell masks beside OUT.")] = False,
) -> None:
    """Draw synthetic stained-looking cells, to try everything without real data."""
    from marrowscope.cells import class_set
    from marrowscope.data.phantom import write_phantoms

    with _bar("draw") as progress:
        n = write_phantoms(out, per_class, seed, codes=class_set(classes).codes, masks=masks, progress=progress)
    typer.echo(f"{n} synthetic cells in {out}")


@app.command()
def index(
    data: Annotated[Path, typer.Argument(help="Folder of images: any depth, a folder per class code.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Table to write.")] = Path("index.csv"),
) -> None:
    """List all images of a folder with class, size and checksum; broken ones with the reason."""
    from marrowscope.data.index import build_index
    from marrowscope.schema import OK, write_index

    with _bar("index") as progress:
        rows = build_index(data, progress=progress)
    write_index(output, rows)
    broken = [r for r in rows if r.status != OK]
    typer.echo(f"{len(rows)} images of {len({r.label for r in rows})} classes in {output}")
    if broken:
        typer.echo(f"{len(broken)} of them can't be used; the column 'status' says why:")
        for r in broken[:10]:
            typer.echo(f"  {r.path}: {r.status}")
        raise typer.Exit(EXIT_SOME_FAILED)


@app.command()
def split(
    index_file: Annotated[Path, typer.Argument(metavar="INDEX", help="An index.csv.")],
    classes: Annotated[str, typer.Option(help="Class set (marrow-21, marrow-14, marrow-8) or codes such as BLA,LYT.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Table to write.")] = Path("split.csv"),
    ratios: Annotated[str, typer.Option(help="Shares of train/val/test.")] = "80/10/10",
    seed: Annotated[int, typer.Option(help="Other seeds draw other splits.")] = 0,
    cap: Annotated[int | None, typer.Option(help="Draw this many images of every class.")] = None,
) -> None:
    """Divide the images of an index into train, val and test: seeded, stratified, copies kept together."""
    from marrowscope.cells import class_set
    from marrowscope.data.split import make_split
    from marrowscope.schema import read_index

    chosen = class_set(classes)
    result = make_split(
        read_index(index_file), codes=chosen.codes, class_set=chosen.name, ratios=_ratios(ratios), seed=seed, cap=cap
    )
    result.write(output)
    sizes = ", ".join(f"{part} {sum(counts.values())}" for part, counts in result.info.counts.items())
    typer.echo(f"{len(result.rows)} images of {len(chosen)} classes: {sizes}; written to {output}")
    for reason, n in result.info.left_out.items():
        typer.echo(f"  left out: {n} ({reason})")


def _ratios(text: str) -> tuple[float, float, float]:
    from marrowscope.errors import SplitError

    try:
        parts = [float(x) for x in text.replace(",", "/").split("/")]
        total = sum(parts)
        if len(parts) != 3 or not 0 < total < float("inf"):
            raise ValueError
    except ValueError:
        raise SplitError(f"--ratios {text!r}: give three numbers as train/val/test, for example 80/10/10.") from None
    return (parts[0] / total, parts[1] / total, parts[2] / total)


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="A TOML file such as those in recipes/.")],
    data: Annotated[Path, typer.Option(help="Folder of images.")],
    out: Annotated[Path, typer.Option(help="Run folder to make.")],
    split_file: Annotated[
        Path | None, typer.Option("--split", help="A split.csv; else the run draws one by the recipe.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run folder stands.")] = False,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change the recipe: --set schedule.epochs=3.")
    ] = None,
    limit_time: Annotated[
        str | None, typer.Option(help="Stop at a checkpoint after this time: 90s, 150m or 8h.")
    ] = None,
) -> None:
    """Train a recipe; Ctrl-C stops at a checkpoint, --resume goes on."""
    from marrowscope.config import load_recipe

    # What the user may have mistyped is checked before the seconds that torch takes to load.
    limit = None if limit_time is None else _seconds(limit_time)
    chosen = load_recipe(recipe, changes or ())
    _need_torch("Training")
    from marrowscope.train import train as run_training

    result = run_training(chosen, data=data, out=out, split=split_file, resume=resume, limit_seconds=limit)
    if os.environ.get("RANK", "0") != "0":
        raise typer.Exit(0 if result.finished else EXIT_STOPPED)
    if result.best_score is not None:
        typer.echo(f"best epoch {result.best_epoch}: validation score {result.best_score:.4f}; run folder {out}")
    if not result.finished:
        typer.echo(f"{result.stopped_by}; go on with --resume")
        raise typer.Exit(EXIT_STOPPED)


def _seconds(text: str) -> float:
    from marrowscope.errors import RecipeError

    unit = {"s": 1, "m": 60, "h": 3600}.get(text[-1:])
    try:
        value = float(text[:-1]) * (unit or float("nan"))
        if not value > 0:
            raise ValueError
    except ValueError:
        raise RecipeError(f"--limit-time {text!r}: give a time such as 90s, 150m or 8h.") from None
    return value


@app.command()
def evaluate(
    target: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or a CSV of predictions with 'truth'.")],
    part: Annotated[PartName, typer.Option(help="Part of the run's split.")] = PartName.test,
    data: Annotated[Path | None, typer.Option(help="Folder of images, where it has moved since training.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Where to write the evaluation.")] = None,
) -> None:
    """Judge a run on its test part: writes predictions.csv and evaluation.json."""
    from marrowscope.evaluate import evaluate_csv

    if target.is_dir():
        _need_torch("Evaluating a run")
        from marrowscope.score import evaluate_run

        with _bar("evaluate") as progress:
            result, path = evaluate_run(target, part.value, data=data, output=output, progress=progress)
    else:
        result, path = evaluate_csv(target), output or target.with_suffix(".evaluation.json")
        result.write(path)
    _print_figures(result)
    typer.echo(f"written to {path}")


def _print_figures(result: Evaluation) -> None:
    where = f"{result.part} part, " if result.part else ""
    typer.echo(f"{where}{result.n} images, {len(result.codes)} classes (95 % intervals)")
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "top2_accuracy"):
        typer.echo(f"  {name.replace('_', ' '):18} {result.figures[name]}")
    for reason, n in result.failed.items():
        typer.echo(f"  {n} files without an answer: {reason}")


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A run folder that was evaluated.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="HTML file; default RUN/report.html.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of images, where it has moved since training.")] = None,
) -> None:
    """Write one self-contained HTML page about a run."""
    from marrowscope.report import write_report

    typer.echo(f"report: {write_report(run, output=output, data=data)}")


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="ONNX file to write.")] = Path("model.onnx"),
    data: Annotated[Path | None, typer.Option(help="Folder of images, where it has moved since training.")] = None,
) -> None:
    """Write a run's best model as one ONNX file, checked against the checkpoint."""
    _need_torch("Exporting")
    from marrowscope.export import export_onnx

    parity = export_onnx(run, output, data=data)
    pictures = f"{parity.pictures} {'cells' if parity.real else 'noise pictures'}"
    typer.echo(f"{output}: largest difference of a probability on {pictures}: {parity.max_difference:.1e}")


@app.command()
def predict(
    model: Annotated[str, typer.Argument(help="An ONNX file made by 'marrowscope export', or a bundled name.")],
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Images and folders of images.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Table to write.")] = Path("predictions.csv"),
    batch_size: Annotated[int, typer.Option(min=1, max=4096, help="Images at a time.")] = 32,
    device: Annotated[str, typer.Option(help="cpu, cuda, openvino or coreml.")] = "cpu",
) -> None:
    """Name the cells on images, without torch. Status 3 when some files could not be read."""
    from marrowscope.infer import Classifier, predict_files

    classifier = Classifier.load(model, device=device)
    with _bar("predict") as progress:
        summary = predict_files(classifier, paths, output, batch_size=batch_size, progress=_found_so_far(progress))
    typer.echo(f"{summary.ok} of {summary.total} files answered in {summary.seconds:.1f} s; written to {output}")
    typer.echo("Not a medical device.")
    if summary.failed:
        for reason, n in summary.failed.items():
            typer.echo(f"  {n} failed: {reason}", err=True)
        raise typer.Exit(EXIT_SOME_FAILED)


def _found_so_far(progress: Callable[[int, Any], None]) -> Callable[[int, int], None]:
    """`predict_files` reports (files done, of these failed); how many will come is not known before the end."""
    return lambda done, failed: progress(done, None)


if __name__ == "__main__":
    main()
