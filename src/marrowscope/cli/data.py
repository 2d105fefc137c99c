"""Commands on images and tables of images."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from marrowscope.cli.common import EXIT_SOME_FAILED, need_torch, progress_bar

if TYPE_CHECKING:
    from marrowscope.schema import Split

IndexFile = Annotated[Path, typer.Argument(metavar="INDEX", help="An index.csv, as 'index' or 'audit' wrote it.")]
Classes = Annotated[str, typer.Option(help="Class set (marrow-21, marrow-14, marrow-8) or codes such as BLA,LYT.")]


def phantom(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make: one folder a class inside.")],
    per_class: Annotated[int, typer.Option(help="Pictures of each class.")] = 120,
    seed: Annotated[int, typer.Option(help="Other seeds draw other cells.")] = 0,
    classes: Annotated[str, typer.Option(help="Class set, or codes such as BLA,LYT.")] = "marrow-14",
    masks: Annotated[bool, typer.Option("--masks", help="Also write nucleus and cell masks beside OUT.")] = False,
) -> None:
    """Draw synthetic cells, to try everything without real data."""
    from marrowscope.cells import class_set
    from marrowscope.data.phantom import write_phantoms

    with progress_bar("draw") as progress:
        n = write_phantoms(out, per_class, seed, codes=class_set(classes).codes, masks=masks, progress=progress)
    typer.echo(f"{n} synthetic cells in {out}")


def index(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="Folder with a folder for each class code, at any depth; a .zip or .tar of it; or Parquet files.",
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Table to write.")] = Path("index.csv"),
    class_map: Annotated[Path | None, typer.Option(help="TOML file that maps other names of classes to codes.")] = None,
) -> None:
    """List all images with class, size, checksum and status.

    Broken ones have the reason as their status. Work that was stopped goes on where it was.
    """
    from marrowscope.data.classmap import read_class_map
    from marrowscope.data.index import build_index
    from marrowscope.errors import OutputError
    from marrowscope.schema import OK, write_index

    classes = None if class_map is None else read_class_map(class_map)
    if output.is_dir():  # said before the work, not after it
        raise OutputError(f"Can't write {output}: it is a folder. Give a file name, such as {output / 'index.csv'}.")
    journal = output.with_name(f".{output.name}.journal")
    with progress_bar("index") as progress:
        rows = build_index(
            data, classes=classes, progress=progress, note=lambda text: typer.echo(text, err=True), journal=journal
        )
    write_index(output, rows)
    journal.unlink(missing_ok=True)
    broken = [r for r in rows if r.status != OK]
    typer.echo(f"{len(rows)} images of {len({r.label for r in rows})} classes in {output}")
    if broken:
        typer.echo(f"{len(broken)} of them can't be used; the column 'status' says why:")
        for r in broken[:10]:
            typer.echo(f"  {r.path}: {r.status}")
        raise typer.Exit(EXIT_SOME_FAILED)


def audit(
    index_file: IndexFile,
    data: Annotated[Path, typer.Option(help="Folder or archive that the index was made of.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")] = Path("audit"),
    predictions: Annotated[
        list[Path] | None,
        typer.Option(help="Predictions of cells by a model that was not trained on them; once for each fold's table."),
    ] = None,
) -> None:
    """Find broken files, copies, odd images and doubtful labels.

    The folder gets a page with the pictures, tables, and an index.csv whose column 'group' names near duplicates; a
    split made of it keeps them together.
    """
    from marrowscope.data.audit import run_audit
    from marrowscope.data.label_errors import join_folds
    from marrowscope.files import make_folder
    from marrowscope.schema import Predictions, read_index, write_index

    rows = read_index(index_file)
    answers = join_folds({path: Predictions.read(path) for path in predictions}) if predictions else None
    make_folder(output)
    with progress_bar("audit") as progress:
        found = run_audit(
            data,
            rows,
            progress=lambda stage, done, total: progress(done, total),
            cache=output / ".features",
            predictions=answers,
        )
    found.write(output, data)
    write_index(output / "index.csv", found.grouped(rows))
    for what, n in found.summary().items():
        typer.echo(f"{n:8} {what}")
    typer.echo(f"tables and pictures: {output / 'index.html'}")


def show(
    table: Annotated[Path, typer.Argument(metavar="INDEX", help="An index.csv; with --augmented a split.csv will do.")],
    data: Annotated[Path, typer.Option(help="Folder or archive that the index was made of.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")] = Path("show"),
    augmented: Annotated[
        Path | None, typer.Option(metavar="RECIPE", help="Show what training with this recipe sees instead.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Other seeds choose other pictures.")] = 0,
) -> None:
    """Show the images of each class, or what training sees.

    Writes contact sheets, the class histogram, and a page with both.
    """
    if augmented is None:
        from marrowscope.show import show_index

        with progress_bar("show") as progress:
            page = show_index(table, data, output, seed=seed, progress=progress)
    else:
        from marrowscope.config import load_recipe

        recipe = load_recipe(augmented)
        need_torch("Showing augmented images")
        from marrowscope.show import show_augmented

        page = show_augmented(recipe, data, table, output, seed=seed)
    typer.echo(f"pictures: {page}")


def split(
    index_file: IndexFile,
    classes: Classes,
    output: Annotated[Path, typer.Option("-o", "--output", help="Table to write.")] = Path("split.csv"),
    ratios: Annotated[str, typer.Option(help="Shares of train/val/test.")] = "80/10/10",
    seed: Annotated[int, typer.Option(help="Other seeds draw other splits.")] = 0,
    cap: Annotated[int | None, typer.Option(help="Take this many images of every class.")] = None,
    shots: Annotated[int | None, typer.Option(help="Leave this many images of every class in train.")] = None,
    keep: Annotated[
        Path | None, typer.Option(help="An earlier split: its images keep their parts, new ones fill up.")
    ] = None,
    folds: Annotated[
        int | None, typer.Option(help="Draw this many folds for cross-validation; train them with --fold.")
    ] = None,
    repeats: Annotated[
        int, typer.Option(help="With --folds: draw them this many times, into split-1.csv, split-2.csv, ...")
    ] = 1,
    rule: Annotated[
        str, typer.Option(help="quota: within one image of the ratios; hash: a part depends on the image alone.")
    ] = "quota",
) -> None:
    """Divide an index into train, val and test.

    Seeded, stratified to within one image, copies and near duplicates kept together.
    """
    from marrowscope.cells import class_set
    from marrowscope.data._assign import RULES
    from marrowscope.data.folds import make_folds
    from marrowscope.data.split import make_split
    from marrowscope.errors import SplitError
    from marrowscope.schema import Split, read_index

    chosen, earlier = class_set(classes), None if keep is None else Split.read(keep)
    with _without_collector():
        rows = read_index(index_file)
        if folds is not None:
            if shots is not None or ratios != "80/10/10" or rule != "quota":
                raise SplitError(
                    "--folds goes with neither --shots nor --ratios nor --rule: every fold is test once, and val once."
                )
            if earlier is not None and repeats > 1:
                raise SplitError("--keep goes with one repetition; grow each table of a repeated drawing by itself.")
            kept = () if earlier is None else (earlier,)
            drawn = make_folds(
                rows, codes=chosen.codes, class_set=chosen.name, k=folds, seed=seed, repeats=repeats, cap=cap, keep=kept
            )
            for i, result in enumerate(drawn, 1):
                _write_split(result, output if repeats == 1 else output.with_name(f"{output.stem}-{i}{output.suffix}"))
            return
        if repeats != 1:
            raise SplitError("--repeats goes with --folds; for other splits, give other seeds.")
        by = next((r for r in RULES if r == rule), None)
        if by is None:
            raise SplitError(f"Unknown rule {rule!r}; allowed: {', '.join(RULES)}.")
        result = make_split(
            rows,
            codes=chosen.codes,
            class_set=chosen.name,
            ratios=_ratios(ratios),
            seed=seed,
            cap=cap,
            rule=by,
            shots=shots,
            keep=earlier,
        )
        _write_split(result, output)


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Python's collector looks at hundreds of thousands of rows again and again, to find nothing."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def import_split(
    index_file: IndexFile,
    classes: Classes,
    train: Annotated[Path, typer.Option(help="Text file with the path of a training image on each line.")],
    test: Annotated[Path, typer.Option(help="The same for test.")],
    val: Annotated[Path | None, typer.Option(help="The same for validation.")] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Table to write.")] = Path("split.csv"),
) -> None:
    """Take over a published split from lists of paths."""
    from marrowscope.cells import class_set
    from marrowscope.data.published import import_split as take_over
    from marrowscope.data.published import read_path_list
    from marrowscope.schema import Part, read_index

    files: dict[Part, Path | None] = {"train": train, "val": val, "test": test}
    lists = {part: read_path_list(path) for part, path in files.items() if path is not None}
    origin = ", ".join(path.name for path in files.values() if path is not None)
    chosen = class_set(classes)
    result = take_over(read_index(index_file), lists, codes=chosen.codes, class_set=chosen.name, origin=origin)
    _write_split(result, output)


def _write_split(result: Split, output: Path) -> None:
    result.write(output)
    sizes = ", ".join(f"{part} {sum(counts.values())}" for part, counts in result.info.counts.items())
    typer.echo(f"{len(result.rows)} images of {len(result.info.codes)} classes: {sizes}; written to {output}")
    for reason, n in result.info.left_out.items():
        typer.echo(f"  left out: {n} ({reason})")
    for note in result.info.notes:
        typer.echo(f"  note: {note}")


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
