"""Commands for daily use, without torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from marrowscope.cli.common import EXIT_SOME_FAILED, progress_bar


def predict(
    model: Annotated[
        str,
        typer.Argument(help="ONNX file of 'marrowscope export', or a bundled name; several: A.onnx,B.onnx."),
    ],
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH...", help="Images, folders, .zip or .tar, patterns, or - for a list.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Table to write: .csv, .jsonl or .parquet.")] = Path(
        "predictions.csv"
    ),
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run stopped.")] = False,
    views: Annotated[int, typer.Option(help="Average over flips and turns of each image: 1, 2, 4 or 8.")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, max=4096, help="Images at a time.")] = 32,
    device: Annotated[str, typer.Option(help="cpu, cuda, openvino or coreml.")] = "cpu",
) -> None:
    """Name the cells on images.

    Needs no torch. Every file has its row; the status is 3 when some of them could not be read.
    """
    from marrowscope.infer import Classifier, Ensemble, Predictor, predict_files

    models = [Classifier.load(name, device=device) for name in model.split(",")]
    predictor: Predictor = models[0] if len(models) == views == 1 else Ensemble(models, views)
    with progress_bar("predict") as progress:
        summary = predict_files(
            predictor, paths, output, batch_size=batch_size, resume=resume, progress=_done_so_far(progress)
        )
    before = f", {summary.resumed} of them before" if summary.resumed else ""
    typer.echo(
        f"{summary.ok} of {summary.total} files answered{before} in {summary.seconds:.1f} s; written to {output}"
    )
    typer.echo("Not a medical device.")
    if summary.failed:
        for reason, n in summary.failed.items():
            typer.echo(f"  {n} failed: {reason}", err=True)
        raise typer.Exit(EXIT_SOME_FAILED)


def _done_so_far(progress: Callable[[int, Any], None]) -> Callable[[int, int], None]:
    """`predict_files` reports (files done, of these failed); how many will come is not known before the end."""
    return lambda done, failed: progress(done, None)


def count(
    predictions: Annotated[Path, typer.Argument(help="A table of predictions of one smear.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="JSON file to write.")] = None,
    ratio: Annotated[
        str, typer.Option(help="M:E ratio: granulocytic-monocytic, granulocytic or dividing.")
    ] = "granulocytic-monocytic",
    least_confidence: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Cells below it are listed for review and not counted.")
    ] = 0.0,
) -> None:
    """Count the differential of a smear from its predictions.

    With simultaneous 95 % intervals; what does not count in the denominator is stated.
    """
    from marrowscope.differential import count as count_cells
    from marrowscope.schema import Predictions

    result = count_cells(Predictions.read(predictions), ratio=ratio, least_confidence=least_confidence)
    typer.echo(f"{result.counted} nucleated marrow cells of {result.files} files")
    for row in result.rows:
        p = row.percent
        interval = "" if p.low is None or p.high is None else f" ({p.low:.1f}–{p.high:.1f})"
        typer.echo(f"  {row.code}  {row.name:22}{row.count:6}{p.value or 0.0:7.1f} %{interval}")
    for code, n in result.left_out.items():
        typer.echo(f"  {code}  not counted           {n:6}")
    typer.echo(f"M:E ratio {result.myeloid_erythroid.figure} ({result.myeloid_erythroid.text})")
    typer.echo(f"{result.unsure} unsure, left for review; {sum(result.failed.values())} files failed")
    for text in result.warnings:
        typer.echo(f"Note: {text}")
    typer.echo(result.intended_use)
    if output is not None:
        result.write(output)
        typer.echo(f"written to {output}")
