"""Commands that need torch: train, sweep, join and export."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from marrowscope.cli.common import EXIT_STOPPED, need_torch, progress_bar

if TYPE_CHECKING:
    from marrowscope.export import Precision


def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A TOML file such as those in recipes/.")],
    data: Annotated[Path, typer.Option(help="Folder or archive of images.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Run folder to make.")],
    split_file: Annotated[
        Path | None, typer.Option("--split", help="A split.csv; else the run draws one by the recipe.")
    ] = None,
    index: Annotated[
        Path | None, typer.Option(help="The index.csv of the split, to check that it fits; else one beside the split.")
    ] = None,
    fold: Annotated[int | None, typer.Option(help="Test on this fold of a split with folds; 0 is the first.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run folder stands.")] = False,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change the recipe: --set schedule.epochs=3.")
    ] = None,
    limit_time: Annotated[
        str | None, typer.Option(help="Stop at a checkpoint after this time: 90s, 150m or 8h.")
    ] = None,
) -> None:
    """Train a network by a recipe.

    Ctrl-C stops at a checkpoint; --resume goes on.
    """
    from marrowscope.config import load_recipe

    # What the user may have mistyped is checked before the seconds that torch takes to load.
    limit = None if limit_time is None else _seconds(limit_time)
    chosen = load_recipe(recipe, changes or ())
    need_torch("Training")
    from marrowscope.train import train as run_training

    result = run_training(
        chosen, data=data, out=out, split=split_file, index=index, fold=fold, resume=resume, limit_seconds=limit
    )
    if os.environ.get("RANK", "0") != "0":
        raise typer.Exit(0 if result.finished else EXIT_STOPPED)
    if result.best_score is not None:
        typer.echo(f"best epoch {result.best_epoch}: validation score {result.best_score:.4f}; run folder {out}")
    if not result.finished:
        typer.echo(f"{result.stopped_by}; go on with --resume")
        raise typer.Exit(EXIT_STOPPED)


def sweep(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A TOML file such as those in recipes/.")],
    data: Annotated[Path, typer.Option(help="Folder or archive of images.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for all runs; give it again to go on.")],
    grid: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=V1,V2", help="Values to try: --grid optimizer.learning_rate=1e-4,3e-4."),
    ] = None,
    split_file: Annotated[
        Path | None, typer.Option("--split", help="A split.csv; its test part is left alone. Else one is drawn.")
    ] = None,
    index: Annotated[
        Path | None, typer.Option(help="Index for --folds, where it names groups; else one is made.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Train each combination with these seeds: 0,1,2.")] = "",
    folds: Annotated[int | None, typer.Option(help="Validate on each of so many folds, 3 or more.")] = None,
    train_only: Annotated[
        bool, typer.Option("--train-only", help="Draw the folds in the train part alone: for teachers.")
    ] = False,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change the recipe for all runs.")
    ] = None,
    limit_time: Annotated[str | None, typer.Option(help="Stop at a checkpoint after this time: 8h.")] = None,
) -> None:
    """Search recipe values on validation cells.

    Writes OUT/sweep.csv; no run has a test part. What is done is not done again.
    """
    from marrowscope.errors import RecipeError

    limit = None if limit_time is None else _seconds(limit_time)
    try:
        numbers = [int(s) for s in seeds.split(",")] if seeds.strip() else []
    except ValueError:
        raise RecipeError(f"--seeds {seeds!r}: give whole numbers such as 0,1,2.") from None
    need_torch("Training")
    from marrowscope.train.sweep import lines
    from marrowscope.train.sweep import sweep as run_sweep

    result = run_sweep(
        recipe, grid or (), data=data, out=out, split=split_file, index=index, seeds=numbers, folds=folds,
        train_only=train_only, changes=changes or (), limit_seconds=limit,
        report=lambda line: typer.echo(line, err=True),
    )  # fmt: skip
    for line in lines(result):
        typer.echo(line)
    typer.echo(f"written to {out / 'sweep.csv'}")
    if result.stopped_by is not None:
        typer.echo(f"{result.stopped_by}; give the same command again to go on")
        raise typer.Exit(EXIT_STOPPED)


def join(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders of one split, two or more.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Run folder to make.")],
    name: Annotated[str | None, typer.Option(help="Name of the model; else that of the first run.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder or archive of images, where it has moved since training.")
    ] = None,
) -> None:
    """Join trained runs to one that answers with their mean.

    What comes out is a run folder like theirs: evaluate, explain and export it.
    """
    need_torch("Joining runs")
    from marrowscope.train.join import join as join_runs

    card = join_runs(runs, out, name=name, data=data)
    scores = ", ".join(f"{k.removeprefix('val_').replace('_', ' ')} {v:.4f}" for k, v in card.validation.items())
    typer.echo(f"{len(card.members)} networks in {out}; on validation cells {scores}")


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


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="ONNX file to write.")] = Path("model.onnx"),
    data: Annotated[
        Path | None, typer.Option(help="Folder or archive of images, where it has moved since training.")
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Compute in eight bits: about a quarter of the size, and mostly faster.")
    ] = False,
    fp16: Annotated[
        bool, typer.Option("--fp16", help="Store the weights in 16 bits: half of the size, not faster.")
    ] = False,
    int8_weights: Annotated[
        bool, typer.Option("--int8-weights", help="Store the weights in eight bits: a third of the size, not faster.")
    ] = False,
) -> None:
    """Write a run's best model as one ONNX file.

    It is checked against the checkpoint, and not written if it answers differently.
    """
    wanted: dict[Precision, bool] = {"int8": int8, "fp16": fp16, "int8-weights": int8_weights}
    chosen = [precision for precision, on in wanted.items() if on]
    if len(chosen) > 1:
        raise typer.BadParameter(f"Give one of --{' and --'.join(chosen)}.")
    need_torch("Exporting")
    from marrowscope.export import export_onnx

    with progress_bar("fit") as progress:
        parity = export_onnx(run, output, precision=chosen[0] if chosen else "fp32", data=data, progress=progress)
    for line in parity.lines():
        typer.echo(f"{output}: {line}")
