"""The index of a folder tree, whatever lies in it."""

from __future__ import annotations

import hashlib
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from marrowscope.data.index import build_index
from marrowscope.data.sources import FolderSource, label_of
from marrowscope.errors import DataError, ImageError
from marrowscope.schema import OK, IndexRow, read_index, write_index


def save(path: Path, seed: int = 0, size: tuple[int, int] = (24, 20), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def test_collection_layout_and_class_per_folder_layout_mix_at_any_depth(tmp_path: Path) -> None:
    save(tmp_path / "BLA/0001-1000/BLA_00001.jpg", 1)
    save(tmp_path / "LYT/LYT_00001.png", 2, (30, 40))
    save(tmp_path / "more/deep/down/EOS/a/b/c.TIF", 3)
    rows = build_index(tmp_path)
    assert [(r.path, r.label) for r in rows] == [
        ("BLA/0001-1000/BLA_00001.jpg", "BLA"),
        ("LYT/LYT_00001.png", "LYT"),
        ("more/deep/down/EOS/a/b/c.TIF", "EOS"),
    ]
    data = (tmp_path / "LYT/LYT_00001.png").read_bytes()
    assert rows[1] == IndexRow("LYT/LYT_00001.png", "LYT", 30, 40, len(data), hashlib.sha256(data).hexdigest(), OK)


def test_nearest_class_folder_counts() -> None:
    assert label_of("BLA/x/LYT/y/z.jpg") == "LYT"
    assert label_of("bla/BLA.jpg") is None
    assert label_of("BLA") is None


def test_junk_and_other_files_get_no_row_but_are_told(tmp_path: Path) -> None:
    save(tmp_path / "BLA/a.jpg")
    for name in ["BLA/._a.jpg", "BLA/Thumbs.db", ".git/x.jpg", "__MACOSX/BLA/a.jpg", "BLA/.DS_Store"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    for name in ["README", "labels.csv", "BLA/notes.txt", "more.csv"]:
        (tmp_path / name).write_text("x")
    notes: list[str] = []
    rows = build_index(tmp_path, note=notes.append)
    assert [r.path for r in rows] == ["BLA/a.jpg"]
    assert notes == ["Passed over, for their names are not those of pictures: 4 files (.csv 2, no suffix 1, .txt 1)."]


def test_broken_files_get_a_row_with_the_reason(tmp_path: Path) -> None:
    good = save(tmp_path / "BLA/good.jpg", size=(64, 64)).read_bytes()
    (tmp_path / "BLA/cut.jpg").write_bytes(good[: len(good) // 2])
    (tmp_path / "BLA/text.jpg").write_text("not a picture")
    (tmp_path / "BLA/empty.jpg").touch()
    (tmp_path / "BLA/gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    save(tmp_path / "BLA/dot.png", size=(1, 1))
    for mode in ("L", "P", "RGBA"):
        save(tmp_path / f"BLA/{mode}.png", mode=mode)
    save(tmp_path / "BLA/cmyk.jpg", mode="CMYK")
    Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20)).save(tmp_path / "BLA/deep.png")
    by_name = {r.path[4:]: r for r in build_index(tmp_path)}
    bad = {n: r for n, r in by_name.items() if r.status != OK}
    assert set(bad) == {"cut.jpg", "text.jpg", "empty.jpg", "gone.jpg", "dot.png"}
    assert (bad["cut.jpg"].width, bad["cut.jpg"].height) == (64, 64)
    assert bad["cut.jpg"].sha256 == hashlib.sha256(good[: len(good) // 2]).hexdigest()
    assert (bad["dot.png"].width, bad["dot.png"].height) == (1, 1)
    assert bad["text.jpg"][2:5] == (0, 0, len("not a picture"))
    assert bad["gone.jpg"][2:6] == (0, 0, 0, "")
    assert all("\n" not in r.status and str(tmp_path) not in r.status for r in bad.values())


def test_huge_header_is_refused_before_decoding(tmp_path: Path) -> None:
    save(tmp_path / "BLA/good.png")
    Image.new("1", (30_000, 30_000)).save(tmp_path / "BLA/huge.png")
    status = {r.path: r.status for r in build_index(tmp_path)}
    assert status["BLA/good.png"] == OK
    assert "pixels" in status["BLA/huge.png"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_does_not_block(tmp_path: Path) -> None:
    save(tmp_path / "BLA/good.png")
    os.mkfifo(tmp_path / "BLA/pipe.png")
    assert {r.path: r.status == OK for r in build_index(tmp_path)} == {"BLA/good.png": True, "BLA/pipe.png": False}


def test_link_loops_end_and_linked_folders_are_read(tmp_path: Path) -> None:
    save(tmp_path / "data/BLA/a.png")
    (tmp_path / "data/BLA/up").symlink_to(tmp_path / "data")
    (tmp_path / "data/BLA/self").symlink_to("self")
    save(tmp_path / "elsewhere/b.png", 1)
    (tmp_path / "data/LYT").symlink_to(tmp_path / "elsewhere")
    assert [r.path for r in build_index(tmp_path / "data")] == ["BLA/a.png", "LYT/b.png"]


@pytest.mark.skipif(sys.platform != "linux", reason="file names of any bytes exist on Linux")
def test_names_of_any_script_and_any_bytes_survive(tmp_path: Path) -> None:
    names = ["клетка.png", "细胞.png", "a b,c\"d'e.png", "new\nline.png", os.fsdecode(b"\xff\xfe.png"), "é́.png"]
    try:
        for i, name in enumerate(names):
            save(tmp_path / "data/BLA" / name, i)
    except OSError:
        pytest.skip("the file system refuses such names")
    rows = build_index(tmp_path / "data")
    assert [r.path for r in rows] == sorted(f"BLA/{n}" for n in names)
    assert all(r.status == OK for r in rows)
    write_index(tmp_path / "index.csv", rows)
    assert read_index(tmp_path / "index.csv") == rows


def test_unknown_class_folders_are_named_and_never_guessed(tmp_path: Path) -> None:
    save(tmp_path / "BLA/a.png")
    save(tmp_path / "neutrophil/b.png")
    save(tmp_path / "bla/c.png")
    with pytest.raises(DataError, match=r"'bla', 'neutrophil' \(2 pictures\).*ABE ART .* PMO.*Rename") as e:
        build_index(tmp_path)
    assert "BLA'" not in str(e.value)


def test_pictures_at_the_top_are_told(tmp_path: Path) -> None:
    save(tmp_path / "b.png")
    with pytest.raises(DataError, match=r"No class folder in .*: 1 picture directly in it.*class code .ABE"):
        build_index(tmp_path)


def test_class_folder_as_data_is_told(tmp_path: Path) -> None:
    save(tmp_path / "BLA/0001-1000/b.png")
    for data in (tmp_path / "BLA", tmp_path / "BLA/0001-1000"):
        with pytest.raises(DataError, match=r"within the class folder 'BLA'.*folder above"):
            build_index(data)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda p: p.mkdir(), r"No picture found in .* It is empty\."),
        (lambda p: (p / "BLA").mkdir(parents=True), "No picture found"),
        (lambda p: (p.mkdir(), (p / "a.txt").touch()), "It holds 1 other file\\."),
        (lambda p: None, "No such file"),
        (lambda p: p.write_text("x"), "is a file"),
    ],
)
def test_nothing_to_index(tmp_path: Path, make: Callable[[Path], object], match: str) -> None:
    data = tmp_path / "data"
    make(data)
    with pytest.raises(DataError, match=match):
        build_index(data)


def test_null_byte_in_data_is_no_crash() -> None:
    with pytest.raises(DataError, match="null"):
        build_index(Path("a\0b"))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may list any folder")
def test_folder_that_cannot_be_listed_is_an_error(tmp_path: Path) -> None:
    save(tmp_path / "BLA/a.png")
    (tmp_path / "LYT").mkdir(mode=0)
    with pytest.raises(DataError, match=r"LYT.*Permission"):
        build_index(tmp_path)


def test_jobs_and_progress(tmp_path: Path) -> None:
    for i in range(70):
        save(tmp_path / f"BLA/{i}.png", i, (16, 16))
    calls: list[tuple[int, int]] = []
    threads = set()

    def progress(done: int, total: int) -> None:
        calls.append((done, total))
        threads.add(threading.current_thread())

    one = build_index(tmp_path, jobs=1)
    assert build_index(tmp_path, jobs=5, progress=progress) == one
    assert calls[-1] == (70, 70)
    assert calls == sorted(calls)
    assert threads == {threading.current_thread()}


def test_an_error_in_progress_ends_the_work(tmp_path: Path) -> None:
    for i in range(100):
        save(tmp_path / f"BLA/{i}.png", 0, (16, 16))

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_index(tmp_path, progress=stop, jobs=1)


def test_folder_source_reads_by_name(tmp_path: Path) -> None:
    data = save(tmp_path / "BLA/a.png").read_bytes()
    source = FolderSource(tmp_path)
    assert source.read("BLA/a.png") == data
    assert source.size("BLA/a.png") == len(data)
    assert source.has("BLA/a.png")
    assert not source.has("BLA/b.png")
    assert not source.has("x" * 5000)
    assert source.size("BLA/b.png") == 0
    save(tmp_path.parent / "secret.png")
    for outside in ("../secret.png", "BLA/../../secret.png", str(tmp_path / "BLA/a.png")):
        assert not source.has(outside)
        with pytest.raises(ImageError, match="outside"):
            source.read(outside)
    with pytest.raises(ImageError, match="missing"):
        source.read("BLA/b.png")


@pytest.mark.real
def test_real_cells_are_all_readable() -> None:
    where = os.environ.get("MARROWSCOPE_DATA")
    if not where:
        pytest.skip("MARROWSCOPE_DATA is not set")
    rows = build_index(Path(where))
    assert rows
    assert {r.status for r in rows} == {OK}
