"""Drawn, stained-looking single cells of the classes of class set marrow-14, for a demo and for tests.

They are synthetic: a few morphological parameters per class (:data:`MORPHOLOGY`) become shapes, the shapes become
layers of stain, and the stain becomes a picture by Beer and Lambert's law. Classes that follow each other in maturation
overlap on purpose, and some cells are damaged past recognition, so that no classifier gets all of them right. What a
network scores on them says nothing about real cells.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from marrowscope.cells import CLASS_SETS
from marrowscope.data import _figures as f
from marrowscope.data._drawing import develop
from marrowscope.data._morphology import MORPHOLOGY, Morphology, Spread
from marrowscope.data._threads import processors
from marrowscope.errors import DataError, OutputError
from marrowscope.files import make_folder, write_text

__all__ = ["MORPHOLOGY", "PHANTOM_VERSION", "Morphology", "Phantom", "Spread", "draw", "masks_folder", "write_phantoms"]

PHANTOM_VERSION = 1
"""Grows whenever the same request draws other pictures."""

_CODES = CLASS_SETS["marrow-14"].codes
_NOTE = """\
SYNTHETIC PICTURES. These are drawings made by a program (marrowscope), not photographs of cells.
They come from no patient and no slide. Use them to try and to test software; scores on them say nothing
about real cells, and they must not be used for diagnosis or mixed with real pictures.
"""
# To start a process costs about as much as to draw this many pictures.
_TASKS_PER_PROCESS = 25
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Phantom:
    """One drawn cell.

    Attributes:
        image: (250, 250, 3), uint8, RGB, about 0.1 um/px.
        nucleus: (250, 250), bool, the nucleus; for ART whatever takes nuclear stain, which may be nothing.
        cell: (250, 250), bool, the cell with its nucleus; for ART the artefact.
        code: Class code.
    """

    image: npt.NDArray[np.uint8]
    nucleus: Mask
    cell: Mask
    code: str


def draw(code: str, seed: int, index: int = 0) -> Phantom:
    """Draw a cell.

    A pure function of its arguments: cell ``index`` looks the same whatever else is drawn. (Where processors round
    the last bit of an exponential differently, a pixel may differ by one grey level; and numpy reserves the right
    to change its random streams between releases.)

    Args:
        code: One of the 14 codes of class set marrow-14.
        seed: 0 or more.
        index: Which cell of the class, 0 or more.

    Raises:
        DataError: The code is none of the 14, or seed or index is negative.
    """
    _check_codes([code])
    if seed < 0 or index < 0:
        raise DataError(f"Seed and index of a phantom must be 0 or more, not {seed} and {index}.")
    rng = np.random.default_rng([seed, _CODES.index(code), index])
    defocus_px = float(rng.uniform(0.7, 1.5))
    if code == "ART":
        layer = f.artefact(rng)
    elif code == "NIF":
        layer = f.cell(f.sampled(f.CELL_CODES[rng.integers(len(f.CELL_CODES))], rng), rng)
        damage = f.sampled_value("damage", MORPHOLOGY["NIF"].damage, rng)
        layer = f.damaged(layer, damage, rng)
        defocus_px += 3.0 * damage * float(rng.random() < 0.5)
    else:
        layer = f.cell(f.sampled(code, rng), rng)
    planes = f.surroundings(rng, layer) * (1 - 0.97 * layer.cover) + layer.planes
    image = develop(planes.astype(np.float32), rng, defocus_px)
    return Phantom(image, layer.nucleus > 0.5, layer.cover > 0.5, code)


def _check_codes(codes: Sequence[str]) -> None:
    unknown = [c for c in codes if c not in MORPHOLOGY]
    if unknown or not codes:
        raise DataError(
            f"Can't draw {', '.join(map(repr, unknown)) or 'no class at all'}. Phantoms exist of: {' '.join(_CODES)}."
        )
    if len(set(codes)) != len(codes):
        raise DataError(f"A class is named twice in {' '.join(codes)}; name each once.")


def masks_folder(out: Path) -> Path:
    """Return where :func:`write_phantoms` puts the masks of the pictures in ``out``: beside it, not within."""
    out = Path(out)
    return out.with_name(f"{out.name}-masks")


@dataclass(frozen=True)
class _Task:
    """One picture to draw; ``mask`` is None where no mask is wanted."""

    code: str
    seed: int
    index: int
    picture: Path
    mask: Path | None


def write_phantoms(
    out: Path,
    per_class: int,
    seed: int,
    codes: Sequence[str] = _CODES,
    masks: bool = False,
    jobs: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write phantoms into ``out/<CODE>/<CODE>_00001.jpg`` and on, laid out as the collection of real cells is.

    Picture number k is ``draw(code, seed, k)`` as a JPEG of quality 95 without chroma subsampling.
    ``out/SYNTHETIC.txt`` comes first; it says that these are drawings and which request made them, so that an
    interrupted one can be taken up: what is there already is kept.

    Args:
        out: Folder to write into: new, empty, or left by the same request.
        per_class: Pictures of each class, 1 or more.
        seed: 0 or more.
        codes: Classes to draw, each once, out of class set marrow-14.
        masks: Also write ``<out>-masks/<CODE>/<CODE>_00001.png``: 0 background, 1 cell, 2 nucleus.
        jobs: Processes that draw at most, 1 or more; None for one per processor. The files don't depend on it.
            With more than one, a script must call this under ``if __name__ == "__main__":``.
        progress: Called with the number of finished pictures and of all.

    Returns:
        Number of pictures drawn by this call; 0 if all were there.

    Raises:
        DataError: A code is unknown or given twice, or a number is too small.
        OutputError: A folder holds something else, or can't be written.
    """
    _check_codes(codes)
    numbers = (("per_class", per_class, 1), ("seed", seed, 0), ("jobs", 1 if jobs is None else jobs, 1))
    for name, value, least in numbers:
        if value < least:
            raise DataError(f"{name} must be {least} or more, not {value}.")
    out = Path(out).absolute()
    request = (
        f"request: drawing {PHANTOM_VERSION}; seed {seed}; {per_class} per class; "
        f"classes {' '.join(sorted(codes))}; masks {'yes' if masks else 'no'}"
    )
    folders = [out, masks_folder(out)] if masks else [out]
    unclaimed = [folder for folder in folders if not _holds(folder, request)]
    for folder in unclaimed:
        make_folder(folder)
        write_text(folder / "SYNTHETIC.txt", f"{_NOTE}\n{request}\n")
    tasks = []
    for index in range(1, per_class + 1):
        for code in codes:
            name = f"{code}/{code}_{index:05d}"
            mask = masks_folder(out) / f"{name}.png" if masks else None
            tasks.append(_Task(code, seed, index, out / f"{name}.jpg", mask))
    todo = [t for t in tasks if not (t.picture.exists() and (t.mask is None or t.mask.exists()))]
    try:
        for folder in folders:
            for code in codes:
                (folder / code).mkdir(exist_ok=True)
        for done in _run(todo, jobs or processors()):
            if progress is not None:
                progress(len(tasks) - len(todo) + done, len(tasks))
    except OSError as e:
        raise OutputError(
            f"Can't write phantoms into {out}: {e.strerror or e}. Choose a folder that can be written and has free "
            "space; the same request goes on where this one ended."
        ) from e
    return len(todo)


def _holds(folder: Path, request: str) -> bool:
    """Tell whether the folder holds this request already (True), or is free for it (False).

    Raises:
        OutputError: Neither; or it can't be read.
    """
    note = folder / "SYNTHETIC.txt"
    try:
        if not folder.exists() or not any(folder.iterdir()):
            return False
        lines = note.read_text("utf-8", errors="replace").splitlines() if note.is_file() else []
    except OSError as e:
        raise OutputError(f"Can't write phantoms into {folder}: {e.strerror or e}. Choose another folder.") from e
    found = next((line for line in lines if line.startswith("request: ")), None)
    if found is None:
        raise OutputError(f"{folder} is not empty. Choose a new or empty folder for the phantoms.")
    if found != request:
        raise OutputError(
            f"{folder} holds phantoms of another {found}. Asked for was {request.removeprefix('request: ')}. "
            "Choose another folder, or ask for the same."
        )
    return True


def _run(tasks: Sequence[_Task], jobs: int) -> Iterator[int]:
    """Draw all tasks, up to ``jobs`` at a time, and yield after each how many are finished."""
    jobs = min(jobs, len(tasks) // _TASKS_PER_PROCESS)
    if jobs < 2:
        for done, task in enumerate(tasks, 1):
            _draw_to_file(task)
            yield done
        return
    left = iter(tasks)
    done = 0
    # Threads would share one interpreter lock (measured: 1.3 times as fast on two cores); a fork may hang under torch.
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _start_process)
    try:
        # Only a few tasks wait at any time, so that an interrupt ends within a few pictures.
        running: set[Future[None]] = {pool.submit(_draw_to_file, t) for t in islice(left, 2 * jobs)}
        while running:
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                future.result()
                done += 1
                yield done
            running |= {pool.submit(_draw_to_file, t) for t in islice(left, len(finished))}
    except BrokenProcessPool as e:
        raise OutputError(
            "A drawing process ended early: out of memory, or called from a script without "
            "`if __name__ == '__main__':`. Draw with jobs=1; what is there is kept."
        ) from e
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_process() -> None:
    """Leave Ctrl-C to the parent, and end with it even if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _draw_to_file(task: _Task) -> None:
    """Draw one picture and its mask; the picture comes last, so that where it is the mask is too."""
    phantom = draw(task.code, task.seed, task.index)
    if task.mask is not None:
        png = io.BytesIO()
        Image.fromarray(phantom.cell.astype(np.uint8) + phantom.nucleus).save(png, "PNG")
        _write(task.mask, png.getvalue())
    jpeg = io.BytesIO()
    Image.fromarray(phantom.image).save(jpeg, "JPEG", quality=95, subsampling=0)
    _write(task.picture, jpeg.getvalue())


def _write(path: Path, data: bytes) -> None:
    # Beside and renamed, as files.atomic_path does, but without its flush to disk for each of thousands of files.
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
