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
        typer.Argument(
            metavar="MODEL", help="ONNX file of 'marrowscope export', or a bundled name; several: A.onnx,B.onnx."
        ),
    ],
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH...", help="Images, folders, .zip or .tar, patterns, or - for a list.")
    ],
    output: Annotated[
        str, typer.Option("-o", "--output", help="Table to write: .csv, .jsonl or .parquet; with --ray a folder.")
    ] = "predictions.csv",
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run stopped.")] = False,
    views: Annotated[int, typer.Option(help="Average over flips and turns of each image: 1, 2, 4 or 8.")] = 1,
    batch_size: Annotated[
        int | None, typer.Option(min=1, max=4096, help="Images in one inference; 4, and 64 where --device is not cpu.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, openvino or coreml.")] = "cpu",
    alpha: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Share of misses of the conformal sets, of those in the model card."),
    ] = None,
    accept_accuracy: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Accuracy that accepted answers should have, of those in the card."),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Work on a Ray cluster: local, auto, HOST:PORT or ray://HOST:PORT. PATH and output may then lie in "
            "s3:// or gs://; @FILE lists images.",
        ),
    ] = None,
) -> None:
    """Name the cells on images.

    Needs no torch. Every file has its row; the status is 3 when some of them could not be read.
    """
    from marrowscope.infer import batch_size_for, load_predictor, predict_files

    models = model.split(",")
    batch_size = batch_size or batch_size_for(device)
    with progress_bar("predict") as progress:
        if ray is not None:
            from marrowscope.cluster import predict_cluster

            summary = predict_cluster(
                models, paths, output, address=ray, views=views, device=device, alpha=alpha,
                accuracy=accept_accuracy, batch_size=batch_size, resume=resume, progress=progress,
            )  # fmt: skip
        else:
            # One thread an inference, and an inference a core (see `predict_files`).
            predictor = load_predictor(
                models, views=views, threads=1, device=device, alpha=alpha, accuracy=accept_accuracy
            )
            summary = predict_files(
                predictor, paths, Path(output), batch_size=batch_size, resume=resume, progress=_done_so_far(progress)
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
    predictions: Annotated[
        Path,
        typer.Argument(metavar="PREDICTIONS", help="A table of predictions of one smear: .csv, .jsonl or .parquet."),
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="File to write: .html, .json, .csv or .fhir.json.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="The model that made them (ONNX file, bundled name or card.json): adjust for what it confuses."
        ),
    ] = None,
    ratio: Annotated[
        str, typer.Option(help="M:E ratio: granulocytic-monocytic, granulocytic or dividing.")
    ] = "granulocytic-monocytic",
    blasts: Annotated[str, typer.Option(help="Blast percentage: blasts or blasts-and-faggot-cells.")] = "blasts",
    least_confidence: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Cells below it are listed for review and not counted.")
    ] = 0.0,
    all_cells: Annotated[
        bool, typer.Option("--all-cells", help="Count also the cells that the model would leave for review.")
    ] = False,
) -> None:
    """Count the differential of a smear from its predictions.

    With simultaneous 95 % intervals; what does not count in the denominator, and what is left for review, is stated.
    """
    from marrowscope.differential import count as count_cells
    from marrowscope.differential.write import as_text, check_ending, write_differential
    from marrowscope.infer import read_card
    from marrowscope.schema import Predictions

    if output is not None:
        check_ending(output)
    result = count_cells(
        Predictions.read(predictions),
        ratio=ratio,
        blasts=blasts,
        least_confidence=least_confidence,
        review=not all_cells,
        card=None if model is None else read_card(model),
    )
    for line in as_text(result):
        typer.echo(line)
    if output is not None:
        write_differential(result, output, title=predictions.stem)
        typer.echo(f"written to {output}")
