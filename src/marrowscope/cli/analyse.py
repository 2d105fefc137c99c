"""The command that analyses a model's errors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from marrowscope.cli.common import PartName, need_torch, progress_bar

if TYPE_CHECKING:
    from marrowscope.schema import Analysis


def analyse(
    target: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="A run folder that was evaluated, or a CSV of predictions with 'truth'."),
    ],
    part: Annotated[PartName, typer.Option(help="Part of the run's split.")] = PartName.test,
    data: Annotated[
        Path | None, typer.Option(help="Folder or archive of images; default: what the run was trained on.")
    ] = None,
    feature_map: Annotated[
        bool, typer.Option("--map/--no-map", help="Whether to lay a run's features out in the plane.")
    ] = True,
    seed: Annotated[int, typer.Option(help="Of the map and the bootstrap.")] = 0,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Where to write the analysis.")] = None,
) -> None:
    """Say where a model errs, and on what, for the report.

    Writes analysis.json into the run folder or beside the table: confused pairs, confident mistakes, uncertain cells,
    doubtful labels, errors against the quality of the pictures, and a map of the model's features.
    """
    with progress_bar("analyse") as progress:
        if target.is_dir():
            if feature_map:
                need_torch("A map of the features (leave it out with --no-map)")
            from marrowscope.features import analyse_run

            result, path = analyse_run(
                target, part.value, data=data, with_map=feature_map, seed=seed, output=output, progress=progress
            )
        else:
            from marrowscope.analysis import analyse_csv

            result = analyse_csv(target, data=data, seed=seed, progress=progress)
            name = "analysis.json" if target.name == "predictions.csv" else f"{target.stem}.analysis.json"
            path = output or target.with_name(name)
            result.write(path)
    _print(result)
    typer.echo(f"written to {path}")


def _print(result: Analysis) -> None:
    typer.echo(f"{result.n} cells")
    for pair in result.pairs[:3]:
        typer.echo(f"  {pair.truth} taken for {pair.predicted}: {pair.count}, {pair.share} of the class")
    typer.echo(f"  {len(result.label_candidates)} cells listed whose label is doubtful")
    for measure in result.quality:
        if measure.p_adjusted is not None and measure.p_adjusted < 0.05:
            typer.echo(f"  errors go with {measure.name}: effect {measure.effect}, p = {measure.p_adjusted:.2g} (Holm)")
    for reason, n in result.unmeasured.items():
        typer.echo(f"  {n} pictures not measured: {reason}")
    if result.feature_map is not None:
        kept = result.feature_map.trustworthiness
        typer.echo(f"  map by {result.feature_map.method}" + (f", trustworthiness {kept:.3f}" if kept else ""))
        if result.feature_map.note:
            typer.echo(f"  {result.feature_map.note}")
