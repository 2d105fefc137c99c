"""A look at a data set, and at what training makes of it: contact sheets as PNG, and one page of them.

OUT/
    index.html, histogram.png, BLA.png, ...     `show_index`: each class, and how many pictures there are of it
    augmented.html, augmented.png               `show_augmented`: pictures beside augmented draws of them

`show_answers` draws one sheet of a model's answers; `figures_table` and `class_table` put an evaluation into Markdown.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from marrowscope.cells import cell_class, clinical_order
from marrowscope.config import Recipe
from marrowscope.data.provenance import is_synthetic
from marrowscope.data.sources import Source, open_source
from marrowscope.errors import DataError, FileFormatError, ImageError
from marrowscope.files import UNDECODABLE, UTF8, atomic_path, make_folder, write_text
from marrowscope.images import decode, to_input
from marrowscope.schema import (
    NOT_A_MEDICAL_DEVICE,
    OK,
    SPLIT_COLUMNS,
    Evaluation,
    IndexRow,
    Predictions,
    Split,
    read_index,
)

SYNTHETIC = "Synthetic: these cells are drawn by a program. They show no patient, and nothing about real cells."

_MAX_SEED = 2**63 - 1

_INK, _PAPER, _FAINT = "#1b1f24", "#ffffff", "#d0d4d9"
_GAP = 4  # pixels between tiles
_HEAD = 28  # pixels of a sheet's title
_FRAME, _CAPTION = 5, 18  # pixels around and below the picture of an answer
_COLUMNS = 10  # of answers

_STYLE = """
:root { color-scheme: light dark; font: 16px/1.45 system-ui, sans-serif; }
body { max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
.notice { border-left: .3rem solid #c77700; padding-left: .8rem; }
img { max-width: 100%; height: auto; background: #fff; }
table { border-collapse: collapse; } td, th { padding: .1rem .8rem .1rem 0; text-align: left; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.bar { width: 20rem; } .bar div { height: .8rem; }
summary { cursor: pointer; } li { overflow-wrap: anywhere; }
"""


def show_index(
    index_file: Path,
    data: Path,
    out: Path,
    *,
    per_class: int = 24,
    side: int = 112,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a contact sheet for each class of an index, the class histogram, and a page of them all.

    Args:
        index_file: An index.csv.
        data: The data that it lists: a folder or an archive.
        out: Folder for the files; made if it isn't there.
        per_class: Pictures on a sheet, 1 to 400. Which ones depends on their names and `seed` alone.
        side: Of a picture on the sheet, pixels, 32 to 512.
        seed: Another one shows other pictures.
        progress: Called with (done, total) classes.

    Returns:
        The page.

    Raises:
        DataError: An option is out of its range, the data are not there, or no picture can be used.
        FileFormatError: Not an index.
        OutputError: `out` can't be written.
    """
    _check_range("per_class", per_class, 1, 400)
    _check_range("side", side, 32, 512)
    _check_range("seed", seed, 0, _MAX_SEED)
    rows, source = read_index(index_file), open_source(data)
    by_class: dict[str, list[IndexRow]] = {}
    for r in rows:
        if r.status == OK:
            by_class.setdefault(r.label, []).append(r)
    if not by_class:
        raise DataError(f"{index_file} lists no picture that can be used. Index the data again and see its status.")
    codes = clinical_order(by_class)
    make_folder(out)
    counts = {c: len(by_class[c]) for c in codes}
    notice = " (synthetic)" if is_synthetic(data) else ""
    _save_png(out / "histogram.png", _histogram(counts, notice))
    body = [_count_table(counts, n_broken=sum(r.status != OK for r in rows))]
    for done, code in enumerate(codes, 1):
        names = _sample([r.path for r in by_class[code]], per_class, seed)
        title = f"{code} {cell_class(code).name}: {len(names)} of {counts[code]:,}{notice}"
        sheet, broken = _contact_sheet(source, names, title, side)
        _save_png(out / f"{code}.png", sheet)
        body.append(_class_section(title, sheet, names, broken))
        if progress is not None:
            progress(done, len(codes))
    page = out / "index.html"
    write_text(page, _page(f"Pictures of {Path(data).resolve().name}", body, synthetic=is_synthetic(data)))
    return page


def show_augmented(
    recipe: Recipe,
    data: Path,
    split_or_index: Path,
    out: Path,
    *,
    pictures: int = 8,
    draws: int = 6,
    seed: int = 0,
) -> Path:
    """Write what training sees: pictures as the recipe prepares them, each beside augmented draws of it.

    Args:
        recipe: As `config.load_recipe` gives it.
        data: Folder or archive of pictures.
        split_or_index: A split.csv, of which the training part is taken, or an index.csv.
        out: Folder for the files; made if it isn't there.
        pictures: How many, 2 to 64, from as many classes as there are; mixup and CutMix mix them with each other.
        draws: Of each, 1 to 16.
        seed: Another one shows other pictures and draws.

    Returns:
        The page.

    Raises:
        DataError: An option is out of its range, or pictures are missing or can't be read.
        FileFormatError: Neither a split nor an index.
        OutputError: `out` can't be written.
    """
    from marrowscope.augment import augmented

    _check_range("pictures", pictures, 2, 64)
    _check_range("draws", draws, 1, 16)
    _check_range("seed", seed, 0, _MAX_SEED)
    rows = _training_rows(split_or_index)
    if not rows:
        raise DataError(f"{split_or_index} has no picture for training.")
    chosen = _from_all_classes(rows, pictures, seed)
    source = open_source(data)
    try:
        originals = np.stack([to_input(source.read(name), recipe.image) for name, _ in chosen])
    except ImageError as e:
        raise DataError(f"A picture of {split_or_index} can't be read in {data}: {e}. Index the data again.") from None
    seen = augmented(originals, recipe.augment, draws=draws, seed=seed)
    notice = " (synthetic)" if is_synthetic(data) else ""
    sheet = _sheet(
        [Image.fromarray(p) for i in range(len(chosen)) for p in (originals[i], *seen[:, i])],
        columns=1 + draws,
        title=f"{recipe.name}: original, then {draws} draws{notice}",
        side=min(recipe.image.size, 224),
    )
    make_folder(out)
    _save_png(out / "augmented.png", sheet)
    body = [
        *_settings(recipe, draws),
        _img(sheet, "pictures beside augmented draws of them"),
        _names([f"{label}: {name}" for name, label in chosen], "Pictures, from top to bottom"),
    ]
    page = out / "augmented.html"
    write_text(page, _page(f"What the recipe {recipe.name} sees", body, synthetic=is_synthetic(data)))
    return page


def show_answers(predictions: Path, data: Path, out: Path, *, n: int = 100, side: int = 96, seed: int = 0) -> Path:
    """Write a sheet of cells with a model's answers: right ones framed green, wrong ones red.

    A letter says the same without colours: R for right, W for wrong. Below each cell stands the answer and, where that
    is wrong, the truth. Chance chooses the cells, whatever was answered, so that the shares of green and red are fair;
    they stand in clinical order of their true classes.

    Args:
        predictions: A table of predictions with a column `truth`, as `marrowscope evaluate` writes it.
        data: Folder or archive that its paths are relative to.
        out: PNG file to write.
        n: Cells, 1 to 1,000; all, where there are fewer.
        side: Of a picture, pixels, 64 to 512.
        seed: Another one shows other cells.

    Returns:
        `out`.

    Raises:
        DataError: An option is out of its range, the data are not there or hold none of the cells, or no file of the
            table has an answer.
        FileFormatError: Not a table of predictions, or one without truth.
        OutputError: `out` can't be written.
    """
    _check_range("n", n, 1, 1000)
    _check_range("side", side, 64, 512)
    _check_range("seed", seed, 0, _MAX_SEED)
    table, source = Predictions.read(predictions), open_source(data)
    if table.truth is None:
        raise FileFormatError(
            f"{predictions} has no column 'truth', and so nothing in it is right or wrong. Give a table of "
            "'marrowscope evaluate', or add the column."
        )
    truth, answered = table.truth, np.flatnonzero(table.ok).tolist()
    if not answered:
        raise DataError(f"{predictions} has no file with an answer.")
    chosen = sorted(answered, key=lambda i: _key(table.paths[i], seed))[:n]
    chosen.sort(key=lambda i: (cell_class(truth[i]).order, table.paths[i]))
    said = {i: table.codes[int(table.probs_NC[i].argmax())] for i in chosen}
    right = sum(said[i] == truth[i] for i in chosen)
    title = f"{len(chosen)} of {len(answered):,} answers: {right} right (R), {len(chosen) - right} wrong (W)"
    tiles = _tiles(source, [table.paths[i] for i in chosen], side)
    broken = [t for t in tiles if isinstance(t, str)]
    if len(broken) == len(tiles):
        raise DataError(
            f"None of {len(tiles)} cells of {predictions} can be read in {data}, the first is {broken[0]}. Give the "
            "folder or archive that its paths are relative to."
        )
    title += f"; {len(broken)} pictures can't be read" * bool(broken)
    title += " (synthetic)" if is_synthetic(data) else ""
    pictures = (_crossed_out(side) if isinstance(t, str) else t for t in tiles)
    _save_png(
        out,
        _sheet(
            [_framed(p, said[i], truth[i], side) for p, i in zip(pictures, chosen, strict=True)],
            columns=min(_COLUMNS, len(chosen)),
            title=title,
            side=side + 2 * _FRAME,
            height=side + 2 * _FRAME + _CAPTION,
        ),
    )
    return out


def figures_table(evaluation: Evaluation, names: Sequence[str] | None = None) -> str:
    """Overall figures of an evaluation as a Markdown table, each with its 95 % interval and its number of cells.

    Args:
        evaluation: As `score.evaluate_run` gives it.
        names: Of the figures (`Evaluation.figures`), in the order of the rows; None for all.

    Raises:
        DataError: There is no such figure.
    """
    wanted = list(evaluation.figures) if names is None else list(names)
    if unknown := [name for name in wanted if name not in evaluation.figures]:
        raise DataError(f"No figure {unknown[0]!r}; there are {', '.join(evaluation.figures)}.")
    rows = [f"| {_in_words(n)} | {evaluation.figures[n]} | {evaluation.figures[n].n} |" for n in wanted]
    return "\n".join(["| figure | value (95 % interval) | cells |", "|---|---|---|", *rows])


def _in_words(name: str) -> str:
    """Name of a figure as a reader knows it."""
    text = name.replace("_", " ").replace("f1", "F1").replace("top2", "top-2").replace("auroc", "AUROC")
    return text.replace("cohen kappa", "Cohen's kappa").replace("matthews", "Matthews correlation")


def class_table(evaluation: Evaluation) -> str:
    """Precision, recall and F1 of each class as a Markdown table, in clinical order, each with its 95 % interval."""
    by_code = {c.code: c for c in evaluation.per_class}
    rows = [
        f"| {code} {cell_class(code).name} | {c.support} | {c.precision} | {c.recall} | {c.f1} |"
        for code in clinical_order(by_code)
        for c in (by_code[code],)
    ]
    return "\n".join(["| class | cells | precision | recall | F1 |", "|---|---|---|---|---|", *rows])


def _framed(picture: Image.Image, said: str, truth: str, side: int) -> Image.Image:
    """A picture in the middle of its frame, the letter and the classes below."""
    from marrowscope.explain.drawing import RIGHT, WRONG

    colour, letter, text = (RIGHT, "R", said) if said == truth else (WRONG, "W", f"{said}, is {truth}")
    wide = side + 2 * _FRAME
    tile = Image.new("RGB", (wide, wide + _CAPTION), _PAPER)
    draw, font = ImageDraw.Draw(tile), ImageFont.load_default(12)
    draw.rectangle((0, 0, wide - 1, wide - 1), fill=colour)
    draw.rectangle((_FRAME, _FRAME, _FRAME + side - 1, _FRAME + side - 1), fill=_PAPER)
    tile.paste(picture, ((wide - picture.width) // 2, (wide - picture.height) // 2))
    draw.rectangle((0, wide, 15, wide + _CAPTION - 1), fill=colour)
    draw.text((8, wide + _CAPTION // 2), letter, _PAPER, font=font, anchor="mm")
    draw.text((20, wide + _CAPTION // 2), text, _INK, font=font, anchor="lm")
    return tile


def _settings(recipe: Recipe, draws: int) -> list[str]:
    what = (
        f"<p>Left: the picture as the network gets it without augmentation, {recipe.image.size} px a side. Then "
        f"{draws} random draws of it. Each step of a training draws anew.</p>"
    )
    settings = {
        k: v for k, v in recipe.augment.model_dump().items() if v and (k != "stain_axes" or recipe.augment.stain)
    }
    if not settings:
        return [what, "<p>All augmentation is off.</p>"]
    on = "".join(f'<tr><td>{escape(k)}</td><td class="number">{escape(str(v))}</td></tr>' for k, v in settings.items())
    return [what, f"<table><tr><th>Option</th><th>Value</th></tr>{on}</table>"]


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise DataError(f"{name} is {value}; allowed: {low} to {high}.")


def _key(name: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\0{name}".encode(UTF8, UNDECODABLE)).digest()


def _sample(names: Sequence[str], n: int, seed: int) -> list[str]:
    """`n` of the names; further pictures in the data change few of them."""
    return sorted(sorted(names, key=lambda name: _key(name, seed))[:n])


def _training_rows(path: Path) -> list[tuple[str, str]]:
    """(path, label) of the training part of a split, or of the good pictures of an index."""
    try:
        with Path(path).open(encoding=UTF8, errors=UNDECODABLE) as f:
            header = f.readline()
    except OSError as e:
        raise FileFormatError(f"Can't read {path}: {e.strerror or e}. Give a split.csv or an index.csv.") from e
    if header.startswith(",".join(SPLIT_COLUMNS)):
        return [(r.path, r.label) for r in Split.read(path).part("train")]
    return [(r.path, r.label) for r in read_index(path) if r.status == OK]


def _from_all_classes(rows: Sequence[tuple[str, str]], n: int, seed: int) -> list[tuple[str, str]]:
    """`n` of the rows, the same number of each class as nearly as can be, neighbours of different classes."""
    by_class: dict[str, list[tuple[str, str]]] = {}
    for row in sorted(rows, key=lambda r: _key(r[0], seed)):
        by_class.setdefault(row[1], []).append(row)
    turns = [(place, code) for code, members in by_class.items() for place in range(len(members))]
    return [by_class[code][place] for place, code in sorted(turns)[:n]]


def _contact_sheet(source: Source, names: Sequence[str], title: str, side: int) -> tuple[Image.Image, list[str]]:
    """The sheet, and what is wrong with the pictures that have a crossed-out tile on it."""
    tiles = _tiles(source, names, side)
    sheet = _sheet([_crossed_out(side) if isinstance(t, str) else t for t in tiles], 8, title, side)
    return sheet, [t for t in tiles if isinstance(t, str)]


def _tiles(source: Source, names: Sequence[str], side: int) -> list[Image.Image | str]:
    """Each picture made to fit into `side` pixels, or what is wrong with it."""

    def tile(name: str) -> Image.Image | str:
        try:
            picture = Image.fromarray(decode(source.read(name)))
        except ImageError as e:
            return f"{name}: {e}"
        picture.thumbnail((side, side))
        return picture

    with ThreadPoolExecutor() as pool:
        return list(pool.map(tile, names))


def _crossed_out(side: int) -> Image.Image:
    image = Image.new("RGB", (side, side), _FAINT)
    draw = ImageDraw.Draw(image)
    draw.line((0, 0, side, side), _INK)
    draw.line((0, side, side, 0), _INK)
    return image


def _sheet(tiles: Sequence[Image.Image], columns: int, title: str, side: int, height: int | None = None) -> Image.Image:
    """Tiles in rows, each in the middle of its place of `side` by `height` (or `side`) pixels, below a title."""
    height = side if height is None else height
    lines = -(-len(tiles) // columns)
    font = ImageFont.load_default(15)
    wide = max(columns * (side + _GAP), round(font.getlength(title)) + _GAP)
    sheet = Image.new("RGB", (wide + _GAP, _HEAD + lines * (height + _GAP) + _GAP), _PAPER)
    ImageDraw.Draw(sheet).text((_GAP, 5), title, _INK, font=font)
    for i, tile in enumerate(tiles):
        if tile.width > side or tile.height > height:
            tile = tile.resize((side, height), Image.Resampling.LANCZOS)
        x, y = _GAP + i % columns * (side + _GAP), _HEAD + i // columns * (height + _GAP)
        sheet.paste(tile, (x + (side - tile.width) // 2, y + (height - tile.height) // 2))
    return sheet


def _histogram(counts: Mapping[str, int], notice: str) -> Image.Image:
    """Bars of the class counts, in clinical order."""
    line, left, width = 24, 230, 900
    image = Image.new("RGB", (width, _HEAD + line * len(counts) + 8), _PAPER)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    draw.text((8, 5), f"{sum(counts.values()):,} pictures of {len(counts)} classes{notice}", _INK, font=font)
    most = max(counts.values())
    for i, (code, n) in enumerate(counts.items()):
        y = _HEAD + i * line
        draw.text((8, y + 2), f"{code} {cell_class(code).name}", _INK, font=font)
        end = left + max(1, round((width - left - 90) * n / most))
        draw.rectangle((left, y + 3, end, y + line - 4), fill=cell_class(code).colour)
        draw.text((end + 6, y + 2), f"{n:,}", _INK, font=font)
    return image


def _save_png(path: Path, image: Image.Image) -> None:
    with atomic_path(path) as temporary:
        image.save(temporary, "PNG", optimize=True)


def _img(image: Image.Image, alt: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return (
        f'<img src="data:image/jpeg;base64,{data}" width="{image.width}" height="{image.height}" alt="{escape(alt)}">'
    )


def _count_table(counts: Mapping[str, int], n_broken: int) -> str:
    total, most = sum(counts.values()), max(counts.values())
    rows = "".join(
        f'<tr><td>{code}</td><td>{escape(cell_class(code).name)}</td><td class="number">{n:,}</td>'
        f'<td class="number">{100 * n / total:.1f} %</td><td class="bar" aria-hidden="true">'
        f'<div style="width:{100 * n / most:.1f}%;background:{cell_class(code).colour}"></div></td></tr>'
        for code, n in counts.items()
    )
    broken = f" {n_broken:,} more can't be used; the index says why." if n_broken else ""
    return (
        f"<p>{total:,} pictures of {len(counts)} classes.{broken}</p><table><thead><tr><th>Code</th><th>Class</th>"
        f"<th>Pictures</th><th>Share</th><td></td></tr></thead><tbody>{rows}</tbody></table>"
    )


def _class_section(title: str, sheet: Image.Image, names: Sequence[str], broken: Sequence[str]) -> str:
    trouble = _names(broken, f"{len(broken)} of them can't be read any more (crossed out)") if broken else ""
    return (
        f"<h2>{escape(title)}</h2>{_img(sheet, title)}{trouble}{_names(names, 'Names, row by row from the top left')}"
    )


def _names(names: Sequence[str], title: str) -> str:
    items = "".join(f"<li>{escape(_printable(n))}</li>" for n in names)
    return f"<details><summary>{escape(title)}</summary><ol>{items}</ol></details>"


def _printable(name: str) -> str:
    """A name that is not valid UTF-8 can't stand on a page as it is."""
    return name.encode(UTF8, UNDECODABLE).decode(UTF8, "replace")


def _page(title: str, body: Sequence[str], *, synthetic: bool) -> str:
    title = escape(_printable(title))
    notices = [NOT_A_MEDICAL_DEVICE, *([SYNTHETIC] if synthetic else [])]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head><body>\n<h1>{title}</h1>\n"
        + "".join(f'<p class="notice">{escape(n)}</p>\n' for n in notices)
        + "\n".join(body)
        + "\n</body></html>\n"
    )
