"""Prepared pictures of one part, batch by batch, read ahead of the training step.

They come from the files, from memory, or from a packed cache on the disk (`pack_on_disk`): one file of pixels, mapped
into memory, for each data folder and way of preparing, with a JSON beside it that says what it holds.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import re
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import PIL
import PIL.features
import torch
from torch import Tensor

from marrowscope.data._threads import processors
from marrowscope.data.sources import Source, open_source
from marrowscope.errors import DataError, ImageError, OutputError
from marrowscope.files import atomic_path, make_folder, write_text
from marrowscope.images import Pixels, to_input
from marrowscope.schema import Preprocessing, SplitRow

Indices = npt.NDArray[np.int64]
Report = Callable[[int, int], None]
"""Called with (done, total)."""


class CellImages:
    """The pictures of some rows of a split, prepared for one model.

    Attributes:
        data: Folder or archive of images, as `data.sources.open_source` takes it.
        rows: The rows, N of them.
        labels: int64 (N,), places in `codes`.
        spec: How pictures are prepared.
    """

    def __init__(self, data: Path, rows: Sequence[SplitRow], codes: Sequence[str], spec: Preprocessing) -> None:
        place = {code: i for i, code in enumerate(codes)}
        self.data = Path(data)
        self.source = open_source(self.data)
        self.rows = tuple(rows)
        self.labels: Indices = np.array([place[r.label] for r in rows], dtype=np.int64)
        self.spec = spec
        self._cache: Pixels | None = None
        self._slots: Indices = np.arange(len(self.rows))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def cached(self) -> bool:
        """Whether the pictures need no decoding any more."""
        return self._cache is not None

    def load(self, index: int) -> Pixels:
        """One prepared picture, uint8 (size, size, 3).

        Raises:
            ImageError: It can't be read; the message has no path.
        """
        if self._cache is not None:
            cached: Pixels = self._cache[self._slots[index]]
            return cached
        return to_input(self.source.read(self.rows[index].path), self.spec)

    def load_into(self, indices: Indices, out_NHWC: Pixels) -> list[str]:
        """Write prepared pictures into an array; returns a line for each that can't be read."""
        if self._cache is not None:
            # The places are in range; with another mode numpy would make a copy of the result.
            np.take(self._cache, self._slots[indices], axis=0, out=out_NHWC, mode="clip")
            return []
        broken = []
        for i, out in zip(indices, out_NHWC, strict=True):
            try:
                out[:] = self.load(int(i))
            except ImageError as e:
                broken.append(f"{self.rows[int(i)].path}: {e}")
        return broken

    def fill_cache(self, progress: Report | None = None, workers: int | None = None) -> None:
        """Decode everything into memory, N x size x size x 3 bytes.

        Raises:
            DataError: Pictures can't be read; the message names the first of them. A split holds readable pictures
                only, so the data have changed since.
        """
        cache = np.empty((len(self), self.spec.size, self.spec.size, 3), dtype=np.uint8)
        broken: list[str] = []

        def fill(i: int) -> None:
            try:
                cache[i] = self.load(i)
            except ImageError as e:
                broken.append(f"{self.rows[i].path}: {e}")

        with ThreadPoolExecutor(workers or processors()) as pool:
            for done, _ in enumerate(pool.map(fill, range(len(self))), 1):
                if progress is not None:
                    progress(done, len(self))
        if broken:
            raise unreadable(broken)
        self.use(cache, np.arange(len(self)))

    def use(self, pixels_NHWC: Pixels, slots: Indices) -> None:
        """Take the pictures from an array from now on: picture i is its row ``slots[i]``."""
        self._cache, self._slots = pixels_NHWC, slots


def unreadable(broken: Sequence[str]) -> DataError:
    """The error for pictures that were readable when the split was drawn."""
    first = "\n  ".join(sorted(broken)[:5])
    return DataError(
        f"{len(broken)} picture(s) of the split can't be read any more:\n  {first}\n"
        "The data changed after the split was drawn: mend them, or index and split again."
    )


@dataclass(frozen=True)
class Batch:
    """Pictures uint8 (B, 3, H, W), labels int64 (B,), and their places in the data set, int64 (B,)."""

    images: Tensor
    labels: Tensor
    indices: Indices


def batches(
    images: CellImages, order: Iterable[Indices], *, workers: int | None = None, ahead: int = 3
) -> Iterator[Batch]:
    """Read batches in the given order of places, `ahead` of them in the background by `workers` threads.

    Without `workers` there is a thread a processor core. 0 reads each batch when it is asked for, which is also what
    happens where one core does all the work: a second thread would only get in the way of the training.

    Raises:
        DataError: A picture can't be read.
    """
    if workers is None:
        cores = processors()
        workers = 0 if cores == 1 and not torch.cuda.is_available() else cores
    if workers == 0:
        for indices in order:
            array = _empty(images, indices)
            yield _batch(images, indices, array, images.load_into(indices, array))
        return
    yield from _read_ahead(images, order, workers, ahead)


def _read_ahead(images: CellImages, order: Iterable[Indices], workers: int, ahead: int) -> Iterator[Batch]:
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[tuple[Indices, Pixels, list[Future[list[str]]]]] = deque()
        places = iter(order)

        def push() -> None:
            indices = next(places, None)
            if indices is None:
                return
            array = _empty(images, indices)
            # Some pictures a task, for handing over costs time too; copying a batch is too little work to share.
            step = max(1, len(indices) if images.cached else len(indices) // (4 * workers))
            shares = [slice(i, i + step) for i in range(0, len(indices), step)]
            waiting.append((indices, array, [pool.submit(images.load_into, indices[s], array[s]) for s in shares]))

        for _ in range(ahead):
            push()
        try:
            while waiting:
                indices, array, futures = waiting.popleft()
                push()
                yield _batch(images, indices, array, [line for f in futures for line in f.result()])
        finally:
            for _, _, futures in waiting:
                for f in futures:
                    f.cancel()


def _empty(images: CellImages, indices: Indices) -> Pixels:
    return np.empty((len(indices), images.spec.size, images.spec.size, 3), np.uint8)


def _batch(images: CellImages, indices: Indices, array_NHWC: Pixels, broken: Sequence[str]) -> Batch:
    if broken:
        raise unreadable(broken)
    # A permuted view of NHWC is what torch calls channels_last; no copy is needed.
    return Batch(torch.from_numpy(array_NHWC).permute(0, 3, 1, 2), torch.from_numpy(images.labels[indices]), indices)


def epoch_order(labels: Indices, *, seed: int, epoch: int, sampling: str, batch_size: int) -> list[Indices]:
    """Places in the data set for each step of one epoch; a pure function of its arguments.

    `natural` shows each picture once, in random order; `balanced` draws as many pictures, each class equally often.
    A last batch smaller than `batch_size` is left out (unless it is the only one): its pictures differ each epoch.
    """
    rng = np.random.default_rng([seed, epoch, 1])
    n = len(labels)
    if sampling == "balanced":
        classes = np.unique(labels)
        per_class = -(-n // len(classes))
        drawn = [_repeat_shuffled(np.flatnonzero(labels == c), per_class, rng) for c in classes]
        order = rng.permutation(np.concatenate(drawn))[:n]
    else:
        order = rng.permutation(n)
    if n <= batch_size:
        return [order]
    return [order[i : i + batch_size] for i in range(0, n - n % batch_size, batch_size)]


def _repeat_shuffled(items: Indices, n: int, rng: np.random.Generator) -> Indices:
    """`n` draws that use every item equally often, as nearly as can be."""
    rounds = [rng.permutation(items) for _ in range(-(-n // len(items)))]
    return np.concatenate(rounds)[:n]


# ------------------------------------------------------------------------------------------------ packed cache on disk

_FORMAT = "marrowscope cache 1"
_BLOCK_BYTES = 1 << 25
"""About as many bytes are decoded, hashed and written at a time."""


class Held(NamedTuple):
    """One picture of a packed cache: its row, and the file that it was made from."""

    slot: int
    stamp: str
    sha256: str


@dataclass(frozen=True)
class Packed:
    """Prepared pictures in one file.

    Attributes:
        path: The file, in numpy's .npy format; the JSON beside it has the same name.
        pixels_NHWC: uint8 (N, size, size, 3), mapped into memory and read only.
        held: By path of the picture, its row and what it was made from.
        blocks: SHA-256 of each block of rows.
        made: Why the file was written now, in words; empty where it was there already and fits.
    """

    path: Path
    pixels_NHWC: Pixels
    held: Mapping[str, Held]
    blocks: tuple[str, ...]
    made: str = ""


def pack_on_disk(parts: Sequence[CellImages], folder: Path, progress: Report | None = None) -> Packed:
    """Take the pictures of some parts of one data set from a packed cache in `folder`, which is made where it lacks.

    There is one cache for each data folder and way of preparing (size, crop, interpolation): all runs, seeds and folds
    on these data share it, and it holds every picture that any of them asked for. It takes N x size x size x 3 bytes:
    26 GB for 171,374 pictures at 224 px.

    Before it is used, all of its bytes are checked against the hashes beside it, and each picture wanted is compared
    with its file: size and time of change (for an archive, those of the archive), and where these differ the SHA-256
    of the file's bytes, as git does. So a changed picture is noticed without reading all files at each start, and a
    copied or touched one costs no rebuild; only a change that keeps size and time (in nanoseconds) goes unseen. What
    does not fit is made anew, taking over the pictures that do, beside the old file, which it then replaces.

    Raises:
        DataError: Pictures can't be read.
        OutputError: The folder can't be written, or has too little space.
    """
    names = list(dict.fromkeys(r.path for p in parts for r in p.rows))
    packed = open_packed(folder, parts[0].data, names, parts[0].spec, progress)
    for part in parts:
        part.use(packed.pixels_NHWC, np.array([packed.held[r.path].slot for r in part.rows], dtype=np.int64))
    return packed


def open_packed(
    folder: Path, data: Path, names: Sequence[str], spec: Preprocessing, progress: Report | None = None
) -> Packed:
    """Open the packed cache of these pictures, and make or mend it first where it doesn't fit; see `pack_on_disk`."""
    make_folder(folder)
    where = Path(data).resolve()
    content = {
        "data": str(where),
        "size": spec.size,
        "crop": spec.crop,
        "interpolation": spec.interpolation,
        "channels": spec.channels,
        **({"reduced_decode": True} if spec.reduced_decode else {}),
    }
    key = hashlib.sha256(_json(content).encode()).hexdigest()[:12]
    path = Path(folder) / f"{re.sub(r'[^A-Za-z0-9_-]', '_', where.name)[:32]}-{spec.size}px-{key}.npy"
    # Another version of the decoder may give other pixels.
    content["decoder"] = f"Pillow {PIL.__version__}, libjpeg {PIL.features.version('libjpeg_turbo')}"
    with _only_one(path.with_suffix(".lock")), ThreadPoolExecutor(processors()) as pool:
        return _Packer(path, content, open_source(data), spec, pool, progress or (lambda done, total: None)).open(names)


@contextlib.contextmanager
def _only_one(lock: Path) -> Iterator[None]:
    """Wait until no other process makes or checks the cache; the lock ends with the process."""
    with contextlib.ExitStack() as stack:
        try:
            fcntl.flock(stack.enter_context(lock.open("w")), fcntl.LOCK_EX)
        except OSError as e:
            raise OutputError(f"Can't lock the picture cache {lock}: {e.strerror or e}. Choose another folder.") from e
        yield


@dataclass(frozen=True)
class _Packer:
    """Checks and makes one packed cache; `content` says what its pixels depend on."""

    path: Path
    content: Mapping[str, Any]
    source: Source
    spec: Preprocessing
    pool: ThreadPoolExecutor
    progress: Report

    def open(self, names: Sequence[str]) -> Packed:
        old, why = self._read()
        fresh = {} if old is None else self._fresh(old, names)
        lacking = len(names) - len(fresh)
        if old is not None and not lacking:
            if any(old.held[n] != h for n, h in fresh.items()):  # only touched
                self._describe({**old.held, **fresh}, old.blocks)
            return old
        self._write(names, old, fresh)
        made, trouble = self._read()
        if made is None:
            raise OutputError(f"The picture cache {self.path} can't be used: {trouble}. Choose another folder for it.")
        return replace(made, made=why or f"{lacking} picture(s) were new or changed")

    @property
    def _rows_a_block(self) -> int:
        return max(1, _BLOCK_BYTES // (self.spec.size**2 * 3))

    def _read(self) -> tuple[Packed | None, str]:
        """Read the cache and check all of it; None, and why, where there is none that can be used."""
        try:
            manifest = json.loads(self.path.with_suffix(".json").read_text(encoding="ascii"))
            if manifest["digest"] != _digest(manifest) or manifest["format"] != _FORMAT:
                return None, "its description was damaged"
            if manifest["content"] != self.content:
                return None, f"it was made with {manifest['content']['decoder']}"
            pixels: Pixels = np.asarray(np.load(self.path, mmap_mode="r", allow_pickle=False))
        except FileNotFoundError:
            return None, "there was none"
        except (OSError, ValueError, TypeError, LookupError, EOFError):
            return None, "it could not be read"
        shape = (len(manifest["pictures"]), self.spec.size, self.spec.size, 3)
        if pixels.dtype != np.uint8 or pixels.shape != shape or self._hash(pixels) != manifest["blocks"]:
            return None, "its pixels were not those that had been written"
        held = {name: Held(i, stamp, sha256) for i, (name, stamp, sha256) in enumerate(manifest["pictures"])}
        return Packed(self.path, pixels, held, tuple(manifest["blocks"])), ""

    def _hash(self, pixels_NHWC: Pixels) -> list[str]:
        rows, n = self._rows_a_block, len(pixels_NHWC)
        out = []
        for digest in self.pool.map(lambda i: _sha256(pixels_NHWC[i : i + rows].data), range(0, n, rows)):
            out.append(digest)
            self.progress(min(len(out) * rows, n), n)
        return out

    def _stamp(self, name: str) -> str:
        try:
            return self.source.stamp(name)
        except OSError:
            return ""

    def _fresh(self, old: Packed, names: Sequence[str]) -> dict[str, Held]:
        """Those of the pictures wanted that the cache holds as their files are now, with the stamps of now."""

        def look(name: str) -> Held | None:
            held = old.held.get(name)
            if held is None:
                return None
            stamp = self._stamp(name)
            if stamp and stamp == held.stamp:
                return held
            try:
                same = _sha256(self.source.read(name)) == held.sha256
            except ImageError:
                return None
            return held._replace(stamp=stamp) if same else None

        found: dict[str, Held] = {}
        for i in range(0, len(names), 4096):
            some = names[i : i + 4096]
            found |= {n: h for n, h in zip(some, self.pool.map(look, some), strict=True) if h is not None}
        return found

    def _write(self, names: Sequence[str], old: Packed | None, fresh: Mapping[str, Held]) -> None:
        """Write the pictures wanted, and those of other runs that the old cache holds; then what they are."""
        wanted = set(names)
        others = {} if old is None else {n: h for n, h in old.held.items() if n not in wanted and self.source.has(n)}
        known, order = {**others, **fresh}, [*others, *names]

        def get(name: str) -> tuple[Pixels, str, str] | str:
            if old is not None and name in known:
                return old.pixels_NHWC[known[name].slot], known[name].stamp, known[name].sha256
            try:
                stamp = self._stamp(name)  # before reading: a change in between is then noticed next time
                data = self.source.read(name)
                return np.ascontiguousarray(to_input(data, self.spec)), stamp, _sha256(data)
            except ImageError as e:
                return f"{name}: {e}"

        held: dict[str, Held] = {}
        blocks, broken = [], []
        side, rows = self.spec.size, self._rows_a_block
        self._make_room(len(order) * side * side * 3)
        with atomic_path(self.path) as temporary, temporary.open("wb") as f:
            header = {"descr": "|u1", "fortran_order": False, "shape": (len(order), side, side, 3)}
            np.lib.format.write_array_header_1_0(f, header)
            for i in range(0, len(order), rows):
                some, block = order[i : i + rows], hashlib.sha256()
                for name, got in zip(some, self.pool.map(get, some), strict=True):
                    if isinstance(got, str):
                        broken.append(got)
                        continue
                    held[name] = Held(len(held), *got[1:])
                    block.update(got[0].data)
                    f.write(got[0].data)
                blocks.append(block.hexdigest())
                self.progress(min(i + rows, len(order)), len(order))
            if broken:
                raise unreadable(broken)
        self._describe(held, blocks)

    def _make_room(self, size: int) -> None:
        """Remove what a killed process left, and see that the new file has space beside the old one."""
        for left in self.path.parent.glob(f".{self.path.name}.*.part"):
            left.unlink(missing_ok=True)
        free = shutil.disk_usage(self.path.parent).free
        if free < size:
            raise OutputError(
                f"The picture cache {self.path} takes {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free. Choose "
                'another data.cache_folder, a smaller image.size, or data.cache = "none".'
            )

    def _describe(self, held: Mapping[str, Held], blocks: Sequence[str]) -> None:
        in_order = sorted(held.items(), key=lambda item: item[1].slot)
        manifest = {
            "format": _FORMAT,
            "content": self.content,
            "pictures": [[name, h.stamp, h.sha256] for name, h in in_order],
            "blocks": list(blocks),
        }
        write_text(self.path.with_suffix(".json"), _json({**manifest, "digest": _digest(manifest)}) + "\n")


def _json(value: object) -> str:
    # ASCII, so that names that are not valid UTF-8 pass unharmed.
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _sha256(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


def _digest(manifest: Mapping[str, Any]) -> str:
    return _sha256(_json({k: v for k, v in manifest.items() if k != "digest"}).encode("ascii"))
