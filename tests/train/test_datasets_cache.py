"""The packed cache on the disk: the same pixels, made once, noticed when it no longer fits."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import marrowscope.datasets as datasets
from marrowscope.config import Recipe
from marrowscope.datasets import CellImages, Packed, batches, pack_on_disk
from marrowscope.errors import DataError, OutputError
from marrowscope.images import load_prepared
from marrowscope.schema import Preprocessing, SplitRow
from marrowscope.train import train
from tiny import TINY_CODES

SPEC = Preprocessing(size=16)


class Place(NamedTuple):
    """Data that a test may change, and where their cache lies."""

    data: Path
    cache: Path

    def images(self, first: int = 0, last: int | None = None, spec: Preprocessing = SPEC) -> CellImages:
        paths = sorted(p.relative_to(self.data).as_posix() for p in self.data.rglob("*.jpg"))
        rows = [SplitRow(p, p.split("/")[0], "train") for p in paths[first:last]]
        return CellImages(self.data, rows, TINY_CODES, spec)

    def pack(self, images: CellImages) -> Packed:
        return pack_on_disk([images], self.cache)


@pytest.fixture
def place(cells: Path, tmp_path: Path) -> Place:
    """Three pictures of each of three classes."""
    for code in TINY_CODES:
        (tmp_path / "data" / code).mkdir(parents=True)
        for p in sorted((cells / code).iterdir())[:3]:
            shutil.copy2(p, tmp_path / "data" / code)
    return Place(tmp_path / "data", tmp_path / "cache")


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with every picture that is decoded."""
    calls: list[int] = []
    original = datasets.to_input

    def counting(data: bytes, spec: Preprocessing) -> object:
        calls.append(len(data))
        return original(data, spec)

    monkeypatch.setattr(datasets, "to_input", counting)
    return calls


def _right(images: CellImages) -> bool:
    return all(
        np.array_equal(images.load(i), load_prepared(images.data / r.path, images.spec))
        for i, r in enumerate(images.rows)
    )


def test_files_memory_and_disk_give_the_same_batches(place: Place) -> None:
    plain, memory, disk = place.images(), place.images(), place.images()
    memory.fill_cache()
    place.pack(disk)
    assert [i.cached for i in (plain, memory, disk)] == [False, True, True]
    order = [np.array([4, 0, 8]), np.array([2]), np.array([], dtype=np.int64)]
    for a, b, c in zip(*(batches(i, order) for i in (plain, memory, disk)), strict=True):
        for other in (b, c):
            assert torch.equal(a.images, other.images)
            assert torch.equal(a.labels, other.labels)
            assert a.images.stride() == other.images.stride() or len(a.indices) == 0
    assert _right(disk)


@pytest.mark.parametrize("cached", [False, True])
def test_reading_ahead_changes_nothing(place: Place, cached: bool) -> None:
    images = place.images()
    if cached:
        images.fill_cache()
    order = [np.array([4, 0, 8, 3, 3]), np.array([2, 1])]
    now, one, many = (list(batches(images, order, workers=w)) for w in (0, 1, 5))
    for a, *others in zip(now, one, many, strict=True):
        assert all(torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) for b in others)


def test_it_is_made_once(place: Place, decoded: list[int]) -> None:
    seen: list[tuple[int, int]] = []
    made = pack_on_disk([place.images()], place.cache, lambda done, total: seen.append((done, total)))
    assert made.made == "there was none"
    assert seen[-1] == (9, 9)
    assert len(decoded) == 9
    before = made.path.stat()
    again = place.images()
    packed = place.pack(again)
    assert (packed.made, len(decoded)) == ("", 9)
    assert made.path.stat().st_mtime_ns == before.st_mtime_ns
    assert not packed.pixels_NHWC.flags.writeable
    assert sorted(p.suffix for p in place.cache.iterdir()) == [".json", ".lock", ".npy"]
    assert made.path.name.startswith("data-16px-")


def test_parts_and_splits_share_it_and_it_grows(place: Place, decoded: list[int]) -> None:
    place.pack(place.images(0, 6))
    assert place.pack(place.images(2, 5)).made == ""
    later, first = place.images(5, 9), place.images(0, 6)
    assert place.pack(later).made == "3 picture(s) were new or changed"
    assert len(decoded) == 9, "only the new ones are decoded"
    assert place.pack(first).made == ""
    assert _right(later)
    assert _right(first)
    (place.data / first.rows[0].path).unlink()
    grown = place.pack(place.images(spec=SPEC.model_copy(update={"mean": (0.5, 0.5, 0.5)})))
    assert grown.made == "", "mean and std are the network's affair"
    assert place.pack(place.images(spec=Preprocessing(size=16, crop=0.9))).path != grown.path


def test_a_changed_picture_is_noticed_even_at_the_same_size(place: Place, decoded: list[int]) -> None:
    images = place.images()
    place.pack(images)
    file = place.data / images.rows[3].path
    old = images.load(3).copy()
    other = (place.data / images.rows[4].path).read_bytes()
    file.write_bytes(other + b"\0" * max(0, file.stat().st_size - len(other)))
    changed = place.images()
    assert place.pack(changed).made == "1 picture(s) were new or changed"
    assert len(decoded) == 10
    assert _right(changed)
    assert not np.array_equal(changed.load(3), old)
    assert np.array_equal(images.load(3), old), "a run that has the old file open keeps it"


def test_a_touched_picture_costs_one_look(place: Place, decoded: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    images = place.images()
    place.pack(images)
    os.utime(place.data / images.rows[3].path, ns=(1, 1))
    assert place.pack(place.images()).made == ""
    assert len(decoded) == 9
    # Nothing may be read from here on.
    monkeypatch.setattr("marrowscope.data.sources.read_bytes", lambda path: 1 / 0)
    assert place.pack(place.images()).made == ""


def _flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def _swap_names(path: Path) -> None:
    manifest = json.loads(path.with_suffix(".json").read_text())
    manifest["pictures"].reverse()
    path.with_suffix(".json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_flip_a_byte, "its pixels were not those that had been written"),
        (_cut, "it could not be read"),
        (Path.unlink, "there was none"),
        (lambda p: p.write_bytes(b""), "it could not be read"),
        (_swap_names, "its description was damaged"),
        (lambda p: p.with_suffix(".json").write_text("[]"), "it could not be read"),
        (lambda p: p.with_suffix(".json").write_text('{"digest": 1'), "it could not be read"),
        (lambda p: p.with_suffix(".json").unlink(), "there was none"),
    ],
    ids=["byte", "cut", "no pixels", "empty", "swapped", "list", "no json", "no description"],
)
def test_a_damaged_cache_is_made_anew(place: Place, damage: Callable[[Path], object], reason: str) -> None:
    damage(place.pack(place.images()).path)
    images = place.images()
    assert place.pack(images).made == reason
    assert _right(images)


def test_another_decoder_makes_it_anew(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.pack(place.images())
    with monkeypatch.context() as patch:
        patch.setattr(datasets.PIL, "__version__", "1.0")
        assert place.pack(place.images()).made.startswith("it was made with Pillow ")
    assert place.pack(place.images()).made.startswith("it was made with Pillow 1.0")


def test_what_a_killed_process_left_is_removed(place: Place) -> None:
    path = place.pack(place.images()).path
    left = path.with_name(f".{path.name}.0123456789ab.part")
    left.write_bytes(b"x" * 100)
    path.unlink()
    place.pack(place.images())
    assert not left.exists()


def test_a_broken_picture_is_named_and_nothing_is_left(place: Place) -> None:
    images = place.images()
    broken = images.rows[2].path
    (place.data / broken).write_bytes(b"\xff\xd8\xff")
    with pytest.raises(DataError, match=f"1 picture.*\n  {broken}: "):
        place.pack(images)
    assert [p.suffix for p in place.cache.iterdir()] == [".lock"]
    for workers in (0, 1):
        with pytest.raises(DataError, match=broken):
            list(batches(images, [np.array([0]), np.array([2])], workers=workers))


def test_too_little_space_is_said_first(place: Place, monkeypatch: pytest.MonkeyPatch, decoded: list[int]) -> None:
    monkeypatch.setattr(datasets.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 7, 3))
    with pytest.raises(OutputError, match=r"takes 0\.0 GB, and 0\.0 GB are free.*cache_folder"):
        place.pack(place.images())
    assert not decoded


def test_a_folder_that_cant_be_used_is_an_error(place: Place) -> None:
    place.cache.write_text("")
    with pytest.raises(OutputError, match="Choose a folder that can be written"):
        place.pack(place.images())
    place.cache.unlink()
    place.pack(place.images()).path.with_suffix(".lock").unlink()
    lock = next(place.cache.glob("*.npy")).with_suffix(".lock")
    lock.mkdir()
    with pytest.raises(OutputError, match="Can't lock the picture cache"):
        place.pack(place.images())


def test_names_that_are_not_utf8_are_kept(place: Place) -> None:
    odd = os.fsencode(place.data / "BLA") + b"/\xff.jpg"
    shutil.copy2(next((place.data / "BLA").iterdir()), odd)
    assert place.pack(place.images()).made == "there was none"
    images = place.images()
    assert place.pack(images).made == ""
    assert any("\udcff" in r.path for r in images.rows)
    assert _right(images)


def test_a_run_with_it_ends_with_the_same_weights(
    tiny_run: Path, tiny_recipe: Callable[..., Recipe], cells: Path, tmp_path: Path
) -> None:
    train(tiny_recipe(data__cache="disk"), data=cells, out=tmp_path / "runs" / "a", quiet=True)
    a, b = load_file(tiny_run / "best.safetensors"), load_file(tmp_path / "runs" / "a" / "best.safetensors")
    assert all(torch.equal(a[k], b[k]) for k in a)
    (made,) = (tmp_path / "runs" / "cache").glob("*.npy")
    assert np.load(made, mmap_mode="r").shape == (27, 32, 32, 3)  # training and validation
    chosen = tiny_recipe(data__cache="disk", data__cache_folder=str(tmp_path / "fast"), schedule__epochs=1)
    train(chosen, data=cells, out=tmp_path / "runs" / "b", quiet=True)
    assert next((tmp_path / "fast").glob("*.npy")).name == made.name
