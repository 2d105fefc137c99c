"""The command that explains answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from marrowscope.cli.common import EXIT_SOME_FAILED, PartName, progress_bar

if TYPE_CHECKING:
    from marrowscope.explain import Settings
    from marrowscope.occlusion import Fill
    from marrowscope.schema import ExplanationTests


def explain(
    model: Annotated[Path, typer.Argument(metavar="RUN|MODEL", help="A run folder, or an ONNX file (occlusion only).")],
    paths: Annotated[
        list[str] | None, typer.Argument(metavar="[PATH...]", help="Images, folders, .zip or .tar, patterns.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder to write; with --test, a file. Default RUN/explanations."),
    ] = None,
    part: Annotated[PartName | None, typer.Option(help="Without PATH: part of the run's split; default test.")] = None,
    per_class: Annotated[int, typer.Option(min=1, help="With --part: images of each class.")] = 8,
    data: Annotated[
        Path | None, typer.Option(help="Folder or archive of images, where it has moved since training.")
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="gradcam, hirescam, layercam, rollout, relevance, occlusion; several; default all that fit."),
    ] = None,
    target: Annotated[str | None, typer.Option(help="Class to explain; default the model's answer.")] = None,
    window: Annotated[float, typer.Option(help="Occlusion: window, as a share of the side.")] = 0.2,
    steps: Annotated[int, typer.Option(help="Occlusion: windows a side; more show finer and cost more.")] = 12,
    fill: Annotated[str, typer.Option(help="Occlusion: background, mean or blur.")] = "background",
    test: Annotated[bool, typer.Option("--test", help="Test the methods instead: RUN/explanation-tests.json.")] = False,
    cells: Annotated[int, typer.Option(help="With --test: images of the part, and as many phantoms.")] = 100,
    bf16: Annotated[bool, typer.Option("--bf16", help="With --test: faster, rounder answers.")] = False,
    seed: Annotated[int, typer.Option(help="With --test: of all chance.")] = 0,
) -> None:
    """Show as heat maps what answers hang on; or test the maps.

    Broken images are listed and not fatal; the status is 3 when there were some.
    """
    from marrowscope.errors import DataError
    from marrowscope.explain import Settings

    if test:
        if paths or target or not model.is_dir():
            raise DataError("--test takes a run folder, and neither images nor --target: it takes images of a part.")
        settings = Settings(
            cells=cells,
            phantoms=cells,
            window=window,
            occlusion_steps=steps,
            fill=_filling(fill),
            precision="bf16" if bf16 else "fp32",
            seed=seed,
        )
        _test(model, part or PartName.test, data, method, settings, output)
        return
    if paths and part is not None:
        raise DataError("Give either images (PATH...) or --part, and not both.")
    if not paths and not model.is_dir():
        raise DataError("Give images to explain (PATH...). Only a run folder has a split to take a part of.")
    part = part if paths else part or PartName.test
    occlusion = (window, steps, _filling(fill))
    _write(model, paths or [], part, per_class, data, method, target, occlusion, output or _place(model))


def _write(
    model: Path,
    paths: Sequence[str],
    part: PartName | None,
    per_class: int,
    data: Path | None,
    method: Sequence[str] | None,
    target: str | None,
    occlusion: tuple[float, int, Fill],
    output: Path,
) -> None:
    from marrowscope.explain import explain as explain_pictures
    from marrowscope.explain import open_subject, part_pictures
    from marrowscope.infer import find_images
    from marrowscope.schema import NOT_A_MEDICAL_DEVICE, OK

    window, steps, fill = occlusion
    subject = open_subject(model, window=window, steps=steps, fill=fill)
    chosen = None if part is None else part_pictures(model, part.value, data=data, per_class=per_class)
    with progress_bar("explain") as progress:
        result = explain_pictures(
            subject,
            find_images(paths) if chosen is None else chosen.items,
            output,
            methods=method or None,
            target=target,
            truth=None if chosen is None else chosen.truth,
            progress=_done_so_far(progress),
        )
    failed = [p for p in result.pictures if p.status != OK]
    names = ", ".join(m.name for m in result.methods)
    typer.echo(f"{len(result.pictures) - len(failed)} images explained by {names}; written to {output}")
    if not method:
        _print_left_out(result.not_fitting)
    for m in result.methods:
        if flat := sum(m.name in p.flat for p in result.pictures):
            typer.echo(f"  {m.name}: {flat} flat maps, which say nothing")
    typer.echo("A heat map shows what the answer hangs on, not whether it is right. Test the methods with --test.")
    typer.echo(NOT_A_MEDICAL_DEVICE)
    for p in failed[:10]:
        typer.echo(f"  {p.path}: {p.status}", err=True)
    if failed:
        typer.echo(f"{len(failed)} images could not be read; {output / 'explanations.json'} lists them.", err=True)
        raise typer.Exit(EXIT_SOME_FAILED)


def _test(
    run: Path,
    part: PartName,
    data: Path | None,
    methods: Sequence[str] | None,
    settings: Settings,
    output: Path | None,
) -> None:
    from marrowscope.explain import judge_run

    with progress_bar("test explanations") as progress:
        found, where = judge_run(
            run,
            part=part.value,
            data=data,
            methods=methods or None,
            settings=settings,
            output=output,
            progress=progress,
        )
    _print_tests(found)
    typer.echo(f"written to {where}")


def _print_tests(found: ExplanationTests) -> None:
    from marrowscope.schema import NOT_A_MEDICAL_DEVICE

    typer.echo(
        f"{found.model}: {found.n} cells of the {found.part} part ({found.right} named right), {found.phantoms} "
        f"phantoms ({found.phantoms_right} named right); 95 % intervals"
    )
    for m in found.methods:
        typer.echo(f"{m.title} ({m.method}): {'passed' if m.passed else 'failed'}")
        for c in m.checks:
            verdict = ("passed" if c.passed else "failed") if c.counted else "not counted"
            typer.echo(f"  {c.name:9} {verdict:12} {c.reason}")
    _print_left_out(found.not_fitting)
    typer.echo(NOT_A_MEDICAL_DEVICE)


def _print_left_out(not_fitting: Mapping[str, str]) -> None:
    """The methods that don't fit, those of one reason together."""
    for why in dict.fromkeys(not_fitting.values()):
        typer.echo(f"  without {', '.join(m for m, w in not_fitting.items() if w == why)}: {why}")


def _done_so_far(progress: Callable[[int, Any], None]) -> Callable[[int], None]:
    """How many pictures will come is not known before the end."""
    return lambda done: progress(done, None)


def _place(model: Path) -> Path:
    """Where a report looks for the heat maps of a run."""
    return (model if model.is_dir() else Path()) / "explanations"


def _filling(fill: str) -> Fill:
    from marrowscope.errors import ModelError
    from marrowscope.occlusion import FILLS

    if fill not in FILLS:
        raise ModelError(f"The filling is {fill!r}; allowed: {', '.join(FILLS)}.")
    return fill
