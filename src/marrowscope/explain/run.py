"""From a model and pictures to a folder of heat maps; its layout is told in `marrowscope.explain`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from marrowscope import __version__
from marrowscope.cells import cell_class, clinical_order
from marrowscope.data.sources import label_of, open_source
from marrowscope.errors import DataError, ImageError, ModelError, OutputError, SplitError
from marrowscope.explain.drawing import Tile, grid, pair, save_png
from marrowscope.explain.heat import Heat, is_flat
from marrowscope.explain.methods import METHODS, chosen_methods
from marrowscope.explain.selection import some_of_each
from marrowscope.explain.subject import Columns, ExportedSubject, Subject
from marrowscope.files import UNDECODABLE, UTF8, atomic_path, make_folder
from marrowscope.images import Pixels, decode, prepare
from marrowscope.infer import Item
from marrowscope.schema import (
    OK,
    ExplainedPicture,
    ExplanationGrid,
    Explanations,
    Part,
    Preprocessing,
    RunInfo,
    Split,
)

NAME = "explanations.json"
PER_GRID = 24
"""Pictures on a grid at most; the first ones of the class."""

_FOLDERS = {"arrays": ".npz", "overlays": ".png", "grids": ".png"}
_BATCH = 16
_COLUMNS = 4
Progress = Callable[[int], object]


class _Explained(NamedTuple):
    """One answer and its maps, by method."""

    predicted: str
    confidence: float
    explained: str
    heat: dict[str, Heat]


@dataclass
class _Folder:
    """What is written, picture by picture."""

    root: Path
    subject: Subject
    methods: tuple[str, ...]
    target: str | None
    truth: Mapping[str, str]
    pictures: list[ExplainedPicture] = field(default_factory=list)
    tiles: dict[tuple[str, str], list[Tile]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, batch: Sequence[tuple[Item, Pixels | str]]) -> None:
        """Explain some pictures and write their files; a text stands for one that could not be read, and is why."""
        good = [pixels for _, pixels in batch if not isinstance(pixels, str)]
        explained = self._explained(np.stack(good)) if good else iter(())
        for item, pixels in batch:
            row = ExplainedPicture(path=_printable(item.name), status=OK, truth=self._truth(item))
            if isinstance(pixels, str):
                self.pictures.append(row.model_copy(update={"status": pixels}))
            else:
                self._add_one(row, pixels, next(explained))

    def _explained(self, pictures_NHWC: Pixels) -> Iterator[_Explained]:
        probs = self.subject.answer(pictures_NHWC)
        best = probs.argmax(1)
        codes = self.subject.codes
        asked: Columns = best if self.target is None else np.full(len(best), codes.index(self.target), dtype=np.int64)
        maps = {m: self.subject.maps(m, pictures_NHWC, asked) for m in self.methods}
        for i, (column, about) in enumerate(zip(best, asked, strict=True)):
            heat = {m: h[i] for m, h in maps.items()}
            yield _Explained(codes[column], float(probs[i, column]), codes[about], heat)

    def _add_one(self, row: ExplainedPicture, picture_HWC: Pixels, e: _Explained) -> None:
        right = None if row.truth is None else row.truth == e.predicted
        number = f"{len(self.pictures) + 1:05d}"
        arrays, overlays = f"arrays/{number}.npz", {}
        with atomic_path(self.root / arrays) as temporary, temporary.open("wb") as f:
            np.savez_compressed(f, **e.heat)  # type: ignore[arg-type]
        flat = tuple(m for m, heat in e.heat.items() if is_flat(heat))
        said = f"{e.predicted} {e.confidence:.2f}" + (f", is {row.truth}" if right is False else "")
        about = "" if e.explained == e.predicted else f"; heat for {e.explained}"
        code = row.truth or e.predicted
        for method, heat in e.heat.items():
            tile = Tile(picture_HWC, heat, right, said + about + (" (flat)" if method in flat else ""))
            overlays[method] = f"overlays/{number}-{method}.png"
            save_png(self.root / overlays[method], pair(tile))
            kept = self.tiles.setdefault((code, method), [])
            if len(kept) < PER_GRID:
                kept.append(tile)
        self.counts[code] += 1
        answer = {"predicted": e.predicted, "confidence": e.confidence, "explained": e.explained}
        files = {"arrays": arrays, "overlays": overlays, "flat": flat}
        self.pictures.append(row.model_copy(update={**answer, **files}))

    def grids(self) -> tuple[ExplanationGrid, ...]:
        """Write a grid for each class and method."""
        out = []
        for code in clinical_order({code for code, _ in self.tiles}):
            for method in self.methods:
                tiles = self.tiles[code, method]
                known = [t.right for t in tiles if t.right is not None]
                right = sum(known) if known else None
                score = "" if right is None else f", {right} right"
                among = f" of {self.counts[code]}" if self.counts[code] > len(tiles) else ""
                title = f"{code} {cell_class(code).name}: {METHODS[method].title}, {len(tiles)}{among}{score}"
                name = f"grids/{code}-{method}.png"
                save_png(self.root / name, grid(tiles, columns=_COLUMNS, title=title))
                out.append(ExplanationGrid(code=code, method=method, file=name, n=len(tiles), right=right))
        return tuple(out)

    def _truth(self, item: Item) -> str | None:
        """Class that is known of a picture, or that of the folder it lies in, where the model has it."""
        label = self.truth.get(item.name) or label_of(Path(item.name).as_posix())
        return label if label in self.subject.codes else None


def explain(
    subject: Subject,
    items: Iterable[Item],
    out: Path,
    *,
    methods: Sequence[str] | None = None,
    target: str | None = None,
    truth: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Explanations:
    """Write heat maps of pictures into a folder.

    A picture that can't be read is listed with its reason and is not fatal.

    Args:
        subject: As `open_subject` gives it.
        items: Pictures, as `infer.find_images` or `part_pictures` gives them.
        out: Folder to write; new or empty, or one that this command wrote before, whose files are replaced.
        methods: Names out of `METHODS`; None for all that fit.
        target: Class to explain; None for each picture's most probable one.
        truth: Class of each picture by its name; for a name that is not here, the class folder that it lies in.
        progress: Called with the number of pictures done.

    Raises:
        ModelError: An unknown method or class, or a method that doesn't fit.
        DataError: There is no picture.
        OutputError: The folder holds something else, or can't be written.
    """
    what = "an ONNX file" if isinstance(subject, ExportedSubject) else f"the network {subject.card.architecture}"
    names = chosen_methods(methods, subject.fitting, subject.not_fitting, what)
    if target is not None and target not in subject.codes:
        raise ModelError(f"The model has no class {target!r}; allowed: {' '.join(subject.codes)}.")
    _clear_folder(out)
    folder = _Folder(out, subject, names, target, truth or {})
    spec = subject.card.preprocessing
    waiting = iter(items)
    while batch := list(islice(waiting, _BATCH)):
        folder.add([(item, _load(item, spec)) for item in batch])
        if progress is not None:
            progress(len(folder.pictures))
    if not folder.pictures:
        raise DataError("There is no picture to explain.")
    result = Explanations(
        model=subject.card.name,
        program=f"marrowscope {__version__}",
        weights_sha256=subject.card.weights_sha256,
        synthetic=subject.card.training_data.synthetic,
        size=spec.size,
        methods=tuple(METHODS[m] for m in names),
        not_fitting=subject.not_fitting,
        pictures=tuple(folder.pictures),
        grids=folder.grids(),
    )
    result.write(out / NAME)
    return result


class PartPictures(NamedTuple):
    """Pictures of a part of a split, and the class of each by its name."""

    items: tuple[Item, ...]
    truth: dict[str, str]


def part_pictures(run: Path, part: Part, *, data: Path | None = None, per_class: int = 8) -> PartPictures:
    """Choose `per_class` pictures of each class from a part of a run's split, class by class.

    Raises:
        SplitError: The part is empty.
        DataError: The data are not there, or `per_class` is below 1.
    """
    if per_class < 1:
        raise DataError(f"per_class is {per_class}; allowed are 1 and more.")
    rows = Split.read(Path(run) / "split.csv").part(part)
    if not rows:
        raise SplitError(f"{Path(run) / 'split.csv'} has no image in the part {part!r}.")
    source = open_source(Path(RunInfo.read(Path(run) / "run.json").data) if data is None else Path(data))
    by_class = {code: [r for r in rows if r.label == code] for code in clinical_order({r.label for r in rows})}
    chosen = [r for members in by_class.values() for r in some_of_each(members, per_class, seed=0)]
    items = tuple(Item(r.path, partial(source.read, r.path)) for r in chosen)
    return PartPictures(items, {r.path: r.label for r in chosen})


def _load(item: Item, spec: Preprocessing) -> Pixels | str:
    try:
        return prepare(decode(item.read()), spec)
    except ImageError as e:
        return str(e)


def _clear_folder(out: Path) -> None:
    """See that nobody else's files are mixed with ours, and remove those that an earlier call left."""
    try:
        found = {p.name for p in out.iterdir()} if out.exists() else set()
        if not found <= {NAME, *_FOLDERS}:
            raise OutputError(
                f"{out} holds something else ({min(found - {NAME, *_FOLDERS})}). Give a new or empty folder."
            )
        (out / NAME).unlink(missing_ok=True)
        for name, ending in _FOLDERS.items():
            for old in (out / name).glob(f"*{ending}"):
                old.unlink()
    except OSError as e:
        raise OutputError(f"Can't write into {out}: {e.strerror or e}. Give a folder that can be written.") from e
    for name in _FOLDERS:
        make_folder(out / name)


def _printable(name: str) -> str:
    r"""A name for JSON: bytes that are not valid UTF-8 stand as \xff."""
    return name.encode(UTF8, UNDECODABLE).decode(UTF8, "backslashreplace")
