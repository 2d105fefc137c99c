"""Commands that judge and compare models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from marrowscope.cli.common import PartName, need_torch, progress_bar

if TYPE_CHECKING:
    from marrowscope.schema import Evaluation


def evaluate(
    target: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or a CSV of predictions with 'truth'.")],
    part: Annotated[PartName, typer.Option(help="Part of the run's split.")] = PartName.test,
    data: Annotated[Path | None, typer.Option(help="Folder of images, where it has moved since training.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Where to write the evaluation.")] = None,
) -> None:
    """Judge a run on its test part, or a table of predictions.

    Writes predictions.csv and evaluation.json into the run folder, or evaluation.json beside the table.
    """
    from marrowscope.evaluate import evaluate_csv

    if target.is_dir():
        need_torch("Evaluating a run")
        from marrowscope.score import evaluate_run

        with progress_bar("evaluate") as progress:
            result, path = evaluate_run(target, part.value, data=data, output=output, progress=progress)
    else:
        result, path = (
            evaluate_csv(target),
            output
            or target.with_name(
                "evaluation.json" if target.name == "predictions.csv" else f"{target.stem}.evaluation.json"
            ),
        )
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


def report(
    run: Annotated[Path, typer.Argument(help="A run folder that was evaluated.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="HTML file; default RUN/report.html.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of images, where it has moved since training.")] = None,
) -> None:
    """Write one self-contained HTML page about a run."""
    from marrowscope.report import write_report

    typer.echo(f"report: {write_report(run, output=output, data=data)}")


def compare(
    tables: Annotated[
        list[Path], typer.Argument(metavar="PREDICTIONS...", help="Tables of predictions, one with truth.")
    ],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="JSON file to write.")] = None,
) -> None:
    """Compare models on the same cells.

    Exact McNemar test, interval of the difference, Holm's correction.
    """
    from marrowscope.errors import FileFormatError
    from marrowscope.evaluate import compare_csvs

    if len(set(tables)) != len(tables) or len(tables) < 2:
        raise FileFormatError("A comparison takes two or more different tables of predictions.")
    result = compare_csvs(tables)
    typer.echo(f"{result.n} cells that all models answered (95 % intervals)")
    for model in result.models:
        typer.echo(f"  {model.name}: accuracy {model.accuracy}")
    for pair in result.pairs:
        typer.echo(
            f"{pair.second} less {pair.first}: {pair.difference}; right in only one of them: {pair.only_second} and "
            f"{pair.only_first}; p = {pair.p_value:.3g}, with Holm's correction {pair.p_adjusted:.3g} ({pair.test})"
        )
    if output is not None:
        result.write(output)
        typer.echo(f"written to {output}")
