"""Commands that judge and compare models."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from marrowscope.cli.common import PartName, need_torch, progress_bar

if TYPE_CHECKING:
    from marrowscope.evaluate import Comparison
    from marrowscope.schema import Evaluation


class ScalingName(StrEnum):
    """Ways to calibrate."""

    auto = "auto"
    temperature = "temperature"
    vector = "vector"


def evaluate(
    target: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or a table of predictions with truth.")],
    part: Annotated[PartName, typer.Option(help="Part of the run's split.")] = PartName.test,
    data: Annotated[
        Path | None, typer.Option(help="Folder or archive of images, where it has moved since training.")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Where to write the evaluation.")] = None,
    groups: Annotated[
        str | None,
        typer.Option(help="Column that says what belongs together: of the table, or of the run's index.csv."),
    ] = None,
    costs: Annotated[Path | None, typer.Option(help="CSV of what errors cost: truth,CODE,CODE,...")] = None,
    validation: Annotated[
        Path | None, typer.Option(help="For a table: another table of the same model, to fit calibration on.")
    ] = None,
    scaling: Annotated[
        ScalingName, typer.Option(help="For a run: calibration; auto compares both.")
    ] = ScalingName.auto,
    refit: Annotated[bool, typer.Option("--refit", help="For a run: fit calibration and thresholds anew.")] = False,
    novelty: Annotated[bool, typer.Option("--novelty", help="For a run: judge it on strange pictures, too.")] = False,
    novel: Annotated[
        Path | None, typer.Option(help="With --novelty: where cells of other classes are; else in the run's data.")
    ] = None,
    photographs: Annotated[
        Path | None, typer.Option(help="With --novelty: folder of photographs; else samples of scikit-image.")
    ] = None,
    robustness: Annotated[
        str | None, typer.Option(metavar="N|all", help="For a run: judge it on so many changed test cells, too.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="With --robustness: an ONNX file that answers in place of the checkpoint.")
    ] = None,
) -> None:
    """Judge a run on its test part, or a table of predictions.

    Writes predictions.csv and evaluation.json into the run folder, or evaluation.json beside the table.
    """
    of_runs = {
        "--scaling": scaling is not ScalingName.auto, "--refit": refit, "--novelty": novelty,
        "--novel": novel, "--photographs": photographs, "--robustness": robustness, "--model": model,
    }  # fmt: skip
    _check_options(target.is_dir(), of_runs, validation)
    cells = None if robustness in {None, "all"} else _cells(str(robustness))
    if (novelty or robustness is not None) and part is not PartName.test:
        raise typer.BadParameter("--novelty and --robustness are of the test part; leave --part out.")
    if not target.is_dir():
        _evaluate_table(target, output, groups, costs, validation)
        return
    need_torch("Evaluating a run")
    from marrowscope.holdout import use_line
    from marrowscope.score import evaluate_run

    with progress_bar("evaluate") as progress:
        result, path = evaluate_run(
            target, part.value, data=data, output=output, groups=groups, costs=costs, scaling=scaling.value,
            refit=refit, progress=progress,
        )  # fmt: skip
    _print_figures(result)
    if novelty:
        result = _judge_novelty(target, path, data, novel, photographs)
    if robustness is not None:
        result = _judge_robustness(target, path, data, cells, model)
    _print_trials(result)
    typer.echo(f"written to {path}")
    if part is PartName.test:
        typer.echo(use_line(target))


def _evaluate_table(
    table: Path, output: Path | None, groups: str | None, costs: Path | None, validation: Path | None
) -> None:
    from marrowscope.evaluate import evaluate_csv, read_groups
    from marrowscope.schema import Predictions

    result = evaluate_csv(
        table,
        groups=None if groups is None else read_groups(table, groups),
        costs=costs,
        validation=None if validation is None else Predictions.read(validation),
    )
    own = "evaluation.json" if table.name == "predictions.csv" else f"{table.stem}.evaluation.json"
    path = output or table.with_name(own)
    result.write(path)
    _print_figures(result)
    typer.echo(f"written to {path}")


def _check_options(is_run: bool, of_runs: Mapping[str, object], validation: Path | None) -> None:
    """Refuse options that would be without effect."""
    given = [name for name, value in of_runs.items() if value]
    if given and not is_run:
        raise typer.BadParameter(f"{', '.join(given)}: for run folders only, and this is a table of predictions.")
    if validation is not None and is_run:
        raise typer.BadParameter("--validation: for tables only; a run has a validation part of its own.")
    for option, needs in (("--novel", "--novelty"), ("--photographs", "--novelty"), ("--model", "--robustness")):
        if option in given and needs not in given:
            raise typer.BadParameter(f"{option} goes with {needs}.")


def _cells(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter(f"--robustness {text!r}: give a number of cells from 1, or all.")
    return int(text)


def _judge_novelty(
    run: Path, evaluation: Path, data: Path | None, novel: Path | None, photographs: Path | None
) -> Evaluation:
    from marrowscope.fit import load_fitted
    from marrowscope.strangers import judge_novelty
    from marrowscope.trials import add_trials

    with progress_bar("strange pictures") as progress:
        found = judge_novelty(run, load_fitted(run), data=data, novel=novel, photographs=photographs, progress=progress)
    return add_trials(evaluation, novelty=found)


def _judge_robustness(
    run: Path, evaluation: Path, data: Path | None, cells: int | None, model: Path | None
) -> Evaluation:
    from marrowscope.trials import add_trials, judge_robustness

    with progress_bar("changed pictures") as progress:
        found = judge_robustness(run, data=data, cells=cells, model=model, progress=progress)
    return add_trials(evaluation, robustness=found)


def _print_figures(result: Evaluation) -> None:
    where = f"{result.part} part, " if result.part else ""
    typer.echo(f"{where}{result.n} images, {len(result.codes)} classes (95 % intervals)")
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "top2_accuracy"):
        typer.echo(f"  {name.replace('_', ' '):18} {result.figures[name]}")
    for reason, n in result.failed.items():
        typer.echo(f"  {n} files without an answer: {reason}")


def _print_trials(result: Evaluation) -> None:
    if (novelty := result.novelty) is not None:
        typer.echo(f"strange pictures, score {novelty.method}: {novelty.flagged} of the test cells are flagged")
        for kind in novelty.kinds:
            score = kind.scores[novelty.method]
            typer.echo(
                f"  {kind.name:26} {kind.n:4}  flagged {kind.flagged}  AUROC {score.auroc}  "
                f"false positives at 95 % {score.fpr_at_95}"
            )
        for name, reason in novelty.left_out.items():
            typer.echo(f"  no {name}: {reason}")
    if (robustness := result.robustness) is not None:
        typer.echo(
            f"changed pictures of {robustness.n} cells, {robustness.model}: accuracy {robustness.accuracy}, "
            f"unchanged {robustness.clean}, relative drop {robustness.relative_drop}"
        )
        for change in robustness.kinds:
            steps = " ".join(f"{p.accuracy.value:.3f}" for p in change.points)
            typer.echo(f"  {change.kind:10} {steps}  relative drop {change.relative_drop}")


def report(
    target: Annotated[
        Path, typer.Argument(metavar="RUN", help="An evaluated run folder, or the evaluation.json of a table.")
    ],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="HTML file; default RUN/report.html.")] = None,
    part: Annotated[PartName, typer.Option(help="Part of the run's split that was evaluated.")] = PartName.test,
    data: Annotated[Path | None, typer.Option(help="Folder or archive of images, where it has moved.")] = None,
    max_cells: Annotated[int, typer.Option(min=1, help="Cells in the gallery; wrong answers come first.")] = 4000,
    charts: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write the charts alone, as SVG files, and no page.")
    ] = None,
) -> None:
    """Write a page about a run: HTML, Markdown and JSON.

    The HTML page needs nothing else, and asks the network for nothing.

    `marrowscope analyse RUN` before it adds the map of the features and errors against the quality of the pictures.
    """
    from marrowscope.report import write_charts, write_report

    if charts is not None:
        for path in write_charts(target, charts, part=part.value):
            typer.echo(f"chart: {path}")
        return
    page = write_report(target, part=part.value, output=output, data=data, max_cells=max_cells)
    typer.echo(f"report: {page}")


def compare(
    tables: Annotated[
        list[Path] | None, typer.Argument(metavar="[PREDICTIONS]...", help="Tables of predictions, one with truth.")
    ] = None,
    published: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=ACCURACY/IMAGES", help="A figure out of a paper: --published ViT-B=0.867/981"),
    ] = None,
    groups: Annotated[
        str | None, typer.Option(help="Column of the first table that says what belongs together.")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="JSON file to write.")] = None,
) -> None:
    """Compare models on the same cells, or with published figures.

    Exact McNemar test, interval of the difference, per class with Holm's correction; Newcombe's interval for others'.
    """
    from marrowscope.errors import FileFormatError
    from marrowscope.evaluate import compare_csvs, compare_published, parse_published, read_groups
    from marrowscope.schema import Predictions

    tables, figures = tables or [], [parse_published(p) for p in published or ()]
    if len(set(tables)) != len(tables) or len(tables) + len(figures) < 2:
        raise FileFormatError(
            "A comparison takes two or more different tables of predictions, or figures given with --published."
        )
    belongs = None
    if groups is not None and tables:
        belongs = dict(zip(Predictions.read(tables[0]).paths, read_groups(tables[0], groups), strict=True))
    result = compare_csvs(tables, groups=belongs, least=1) if tables else None
    if figures:
        result = compare_published(figures, result)
    assert result is not None
    _print_comparison(result)
    if output is not None:
        result.write(output)
        typer.echo(f"written to {output}")


def _print_comparison(result: Comparison) -> None:
    if result.models:
        typer.echo(f"{result.n} cells that all models answered (95 % intervals)")
    for model in result.models:
        typer.echo(f"  {model.name}: accuracy {model.accuracy}")
    for figure in result.published:
        typer.echo(f"  {figure.name}: accuracy {figure.accuracy} on {figure.accuracy.n} other images, as published")
    for pair in result.pairs:
        typer.echo(
            f"{pair.second} less {pair.first}: {pair.difference}; right in only one of them: {pair.only_second} and "
            f"{pair.only_first}; p = {pair.p_value:.3g}, with Holm's correction {pair.p_adjusted:.3g} ({pair.test})"
        )
        for c in pair.per_class:
            typer.echo(
                f"  {c.code} ({c.n}): {c.difference}; {c.only_second} and {c.only_first}; "
                f"p = {c.p_value:.3g}, with Holm's correction {c.p_adjusted:.3g}"
            )
    for other in result.published_differences:
        typer.echo(f"{other.model} less {other.published}: {other.difference} ({other.difference.method})")
