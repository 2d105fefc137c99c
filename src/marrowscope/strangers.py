"""Pictures of what a run has not learnt, and what its score of novelty makes of them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from marrowscope.cells import CLASS_SETS
from marrowscope.config import load_recipe
from marrowscope.data.index import build_index
from marrowscope.data.phantom import draw
from marrowscope.data.sources import Source, open_source
from marrowscope.datasets import CellImages, unreadable
from marrowscope.errors import DataError, ImageError
from marrowscope.evaluate import novelty
from marrowscope.evaluate.corruptions import corrupt, direction_of
from marrowscope.evaluate.strangers import Strangers, novelty_figures
from marrowscope.fit import Fitted, data_folder, raw, spread
from marrowscope.images import Pixels, decode, prepare
from marrowscope.outputs import Outputs, cell_outputs, picture_outputs
from marrowscope.schema import OK, IndexRow, Novelty, Split, read_index
from marrowscope.score import group_names, part_images
from marrowscope.triage import judge

Progress = Callable[[int, int], None]

CELLS = 256
"""Test cells, at most, of which another stain is made; and as many phantoms."""

STAIN_STRENGTHS = (3, 5)
"""Of `corruptions.AMOUNTS`, for other stains."""

WINDOW = 250
"""Side of the pieces that are cut out of photographs, pixels: that of a picture of the collection."""

WINDOWS = 24
"""Pieces, at most, of one photograph."""

PHOTOGRAPHS = (
    ("sklearn.datasets", ("china.jpg", "flower.jpg")),
    (
        "skimage.data",
        ("astronaut", "chelsea", "coffee", "rocket", "camera", "brick", "grass", "gravel", "coins", "moon"),
    ),
)
"""Sample photographs that scikit-learn and scikit-image bring with them; none shows cells."""


@dataclass(frozen=True)
class _Kind:
    """Pictures of one kind, not prepared yet; the group of each; and where they were made of test cells, of which."""

    name: str
    description: str
    pictures: Iterable[Pixels]
    groups: list[str]
    sources: list[int] | None = None


def judge_novelty(
    run: Path,
    fitted: Fitted,
    *,
    data: Path | None = None,
    novel: Path | None = None,
    photographs: Path | None = None,
    progress: Progress | None = None,
) -> Novelty:
    """Judge whether a fitted run notices what it has not learnt, against the cells of its test part.

    Kinds: real cells of classes that it was not trained on; test cells in other stains (the stain axes shifted);
    phantoms; and pieces of photographs that show no cells.

    Args:
        run: Run folder.
        fitted: The run, after `fit.fit_card`.
        data: Folder of images; without it, the one that the run was trained on.
        novel: Folder, archive or index.csv in which cells of other classes are looked for; without it, the data.
        photographs: Folder of photographs; without it, the samples of scikit-learn and scikit-image.
        progress: Called with (done, total).

    Raises:
        DataError: The run knows nothing of its features, or a picture can't be read.
        SplitError: The test part is empty or not at hand.
    """
    if fitted.known is None or fitted.card.novelty is None:
        raise DataError(f"The features of {run} are the same for all cells, so there is no novelty to judge.")
    images = part_images(run, fitted, "test", data)
    group_N = np.unique(group_names(run, images.rows, images.data, None), return_inverse=True)[1].astype(np.int64)
    kinds, left_out = _kinds(run, fitted, images, data_folder(run, data), novel, photographs)
    total = len(images) + sum(len(k.groups) for k in kinds)
    done = 0

    def scored(outputs: Outputs) -> dict[str, npt.NDArray[np.float64]]:
        assert fitted.known is not None
        return novelty.novelty_scores(fitted.known.statistics, fitted.known.bank_MD, *outputs)

    def step(n: int, _: int) -> None:
        if progress is not None:
            progress(done + n, total)

    known = scored(cell_outputs(fitted.model, images, progress=step))
    done += len(images)
    strangers = []
    for kind in kinds:
        prepared = (prepare(p, images.spec) for p in kind.pictures)
        outputs = picture_outputs(fitted.model, prepared, len(kind.groups), progress=step)
        done += len(kind.groups)
        accepted = judge(fitted.card, outputs.logits_NC, fitted.score(outputs)).accepted_N
        source = None if kind.sources is None else np.array(kind.sources)
        strangers.append(Strangers(kind.name, kind.description, kind.groups, scored(outputs), accepted, source))
    return novelty_figures(
        known, group_N, strangers, fitted.card.novelty, chosen_by=fitted.known.aurocs, left_out=left_out
    )


def _kinds(
    run: Path, fitted: Fitted, images: CellImages, data: Path, novel: Path | None, photographs: Path | None
) -> tuple[list[_Kind], dict[str, str]]:
    """All kinds that can be had, and why the others can't."""
    kinds, left_out = [], {}
    rows, source = novel_cells(run, fitted.card.codes, data, novel)
    if rows:
        codes = sorted({r.label for r in rows})
        kinds.append(
            _Kind(
                "other classes",
                f"{len(rows)} cells of {len(codes)} classes that the model was not trained on: {' '.join(codes)}",
                (_read(source, r.path) for r in rows),
                [r.group or r.sha256 for r in rows],
            )
        )
    else:
        left_out["other classes"] = f"{novel or data} holds no cell of a class that the model was not trained on"
    cells = spread(len(images), CELLS)
    kinds += [_other_stain(images, cells, strength) for strength in STAIN_STRENGTHS]
    if fitted.card.training_data.synthetic:
        left_out["phantoms"] = "the model was trained on phantoms"
    else:
        drawn = CLASS_SETS["marrow-14"].codes
        kinds.append(
            _Kind(
                "phantoms",
                f"{CELLS} cells drawn by `marrowscope phantom`, of {len(drawn)} classes",
                (draw(drawn[i % len(drawn)], 0, i // len(drawn)).image for i in range(CELLS)),
                [str(i) for i in range(CELLS)],
            )
        )
    pieces = list(photograph_pieces(photographs))
    if pieces:
        names = [name for name, _ in pieces]
        kinds.append(
            _Kind(
                "photographs",
                f"{len(pieces)} pieces of {WINDOW} px of {len(set(names))} photographs that show no cells",
                (p for _, p in pieces),
                names,
            )
        )
    else:
        left_out["photographs"] = "neither scikit-learn nor scikit-image is installed, whose samples would serve"
    return kinds, left_out


def _other_stain(images: CellImages, cells: list[int], strength: int) -> _Kind:
    rows = images.rows
    return _Kind(
        f"other stain, strength {strength}",
        f"{len(cells)} test cells, amounts of the two stains shifted against each other",
        (corrupt(raw(images, i), "stain", strength, direction_of(rows[i].path, "stain")) for i in cells),
        [rows[i].path for i in cells],
        cells,
    )


def _read(source: Source, name: str) -> Pixels:
    try:
        return decode(source.read(name))
    except ImageError as e:
        raise unreadable([f"{name}: {e}"]) from None


def novel_cells(run: Path, codes: Iterable[str], data: Path, novel: Path | None) -> tuple[list[IndexRow], Source]:
    """Readable cells whose class a run was not trained on, by path, and where they are read from.

    What stands in the run's split was seen, whatever it is called; and classes that its recipe merges into others.

    Args:
        run: Run folder.
        codes: The run's classes.
        data: Its folder of images.
        novel: Another folder or archive, or an index.csv of `data`; without it, the run's own index of `data`.

    Raises:
        DataError: `novel` can't be read or indexed.
    """
    if novel is not None and novel.suffix == ".csv":
        rows, source = read_index(novel), open_source(data)
    elif novel is not None:
        rows, source = build_index(novel), open_source(novel)
    else:
        own = run / "index.csv"
        rows, source = (read_index(own) if own.is_file() else build_index(data)), open_source(data)
    learnt = {*codes, *load_recipe(run / "config.toml").merge}
    same = source.where == open_source(data).where
    seen = {r.path for r in Split.read(run / "split.csv").rows} if same else set()
    return sorted(r for r in rows if r.status == OK and r.label not in learnt and r.path not in seen), source


def photograph_pieces(folder: Path | None) -> Iterator[tuple[str, Pixels]]:
    """(name of the photograph, piece of `WINDOW` px), pieces side by side, at most `WINDOWS` of each photograph.

    Args:
        folder: Of photographs; None: the samples of scikit-learn and scikit-image, as far as these are installed.

    Raises:
        DataError: The folder holds no picture, or none that is large enough.
    """
    found = _folder_photographs(folder) if folder is not None else _sample_photographs()
    none = True
    for name, pixels in found:
        ys, xs = (range(0, side - WINDOW + 1, WINDOW // 2) for side in pixels.shape[:2])
        grid = [(y, x) for y in ys for x in xs]
        for i in spread(len(grid), WINDOWS):
            y, x = grid[i]
            none = False
            yield name, np.ascontiguousarray(pixels[y : y + WINDOW, x : x + WINDOW])
    if folder is not None and none:
        raise DataError(f"{folder} holds no photograph of at least {WINDOW} x {WINDOW} px.")


def _folder_photographs(folder: Path) -> Iterator[tuple[str, Pixels]]:
    source = open_source(folder)
    for name in source.names:
        yield name, _read(source, name)


def _sample_photographs() -> Iterator[tuple[str, Pixels]]:
    for module_name, names in PHOTOGRAPHS:
        try:
            module: Any = importlib.import_module(module_name)
        except ImportError:
            continue
        for name in names:
            array = module.load_sample_image(name) if hasattr(module, "load_sample_image") else getattr(module, name)()
            grey = array.ndim == 2
            yield f"{module_name} {name}", np.repeat(array[:, :, None], 3, axis=2) if grey else array[:, :, :3]
