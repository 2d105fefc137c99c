"""Commands that need torch: train and export."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from marrowscope.cli.common import EXIT_STOPPED, need_torch


def train(
    recipe: Annotated[Path, typer.Argument(help="A TOML file such as those in recipes/.")],
    data: Annotated[Path, typer.Option(help="Folder of images.")],
    out: Annotated[Path, typer.Option(help="Run folder to make.")],
    split_file: Annotated[
        Path | None, typer.Option("--split", help="A split.csv; else the run draws one by the recipe.")
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
    """Train a recipe.

    Ctrl-C stops at a checkpoint; --resume goes on.
    """
    from marrowscope.config import load_recipe

    # What the user may have mistyped is checked before the seconds that torch takes to load.
    limit = None if limit_time is None else _seconds(limit_time)
    chosen = load_recipe(recipe, changes or ())
    need_torch("Training")
    from marrowscope.train import train as run_training

    result = run_training(chosen, data=data, out=out, split=split_file, fold=fold, resume=resume, limit_seconds=limit)
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


def export(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="ONNX file to write.")] = Path("model.onnx"),
    data: Annotated[Path | None, typer.Option(help="Folder of images, where it has moved since training.")] = None,
    int8: Annotated[bool, typer.Option("--int8", help="Eight bits: smaller and mostly faster.")] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="Weights in 16 bits: half of the size, not faster.")] = False,
) -> None:
    """Write a run's best model as one ONNX file.

    It is checked against the checkpoint, and not written if it answers differently.
    """
    if int8 and fp16:
        raise typer.BadParameter("Give --int8 or --fp16, not both.")
    need_torch("Exporting")
    from marrowscope.export import export_onnx

    parity = export_onnx(run, output, precision="int8" if int8 else "fp16" if fp16 else "fp32", data=data)
    for line in parity.lines():
        typer.echo(f"{output}: {line}")
