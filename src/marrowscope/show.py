"""A look at a data set, and at what training makes of it: contact sheets as PNG, and one page of them.

OUT/
    index.html, histogram.png, BLA.png, ...     `show_index`: each class, and how many pictures there are of it
    augmented.html, augmented.png               `show_augmented`: pictures beside augmented draws of them
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
from marrowscope.schema import NOT_A_MEDICAL_DEVICE, OK, SPLIT_COLUMNS, IndexRow, Split, read_index

SYNTHETIC = "Synthetic: these cells are drawn by a program. They show no patient, and nothing about real cells."

_MAX_SEED = 2**63 - 1

_INK, _PAPER, _FAINT = "#1b1f24", "#ffffff", "#d0d4d9"
_GAP = 4  # pixels between tiles
_HEAD = 28  # pixels of a sheet's title

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

    def tile(name: str) -> Image.Image | str:
        try:
            picture = Image.fromarray(decode(source.read(name)))
        except ImageError as e:
            return f"{name}: {e}"
        picture.thumbnail((side, side))
        return picture

    with ThreadPoolExecutor() as pool:
        tiles = list(pool.map(tile, names))
    sheet = _sheet([_crossed_out(side) if isinstance(t, str) else t for t in tiles], 8, title, side)
    return sheet, [t for t in tiles if isinstance(t, str)]


def _crossed_out(side: int) -> Image.Image:
    image = Image.new("RGB", (side, side), _FAINT)
    draw = ImageDraw.Draw(image)
    draw.line((0, 0, side, side), _INK)
    draw.line((0, side, side, 0), _INK)
    return image


def _sheet(tiles: Sequence[Image.Image], columns: int, title: str, side: int) -> Image.Image:
    """Tiles in rows, each in the middle of its place of `side` pixels, below a title."""
    step = side + _GAP
    lines = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * step + _GAP, _HEAD + lines * step + _GAP), _PAPER)
    ImageDraw.Draw(sheet).text((_GAP, 5), title, _INK, font=ImageFont.load_default(15))
    for i, tile in enumerate(tiles):
        if max(tile.size) > side:
            tile = tile.resize((side, side), Image.Resampling.LANCZOS)
        x, y = _GAP + i % columns * step, _HEAD + i // columns * step
        sheet.paste(tile, (x + (side - tile.width) // 2, y + (side - tile.height) // 2))
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
