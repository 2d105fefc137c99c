"""Patterns, lists and archives: what PATH may be beside files and folders."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from marrowscope import images
from marrowscope.errors import DataError, ImageError
from marrowscope.infer import Classifier, Item, archives, find_images, predict, predict_files, predict_to_predictions
from tiny_onnx import write_model


def jpeg(seed: int = 0) -> bytes:
    f = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(f, "JPEG")
    return f.getvalue()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    return Classifier.load(write_model(tmp_path_factory.mktemp("model") / "tiny.onnx"), threads=1)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ["a/1.jpg", "a/2.png", "a/x/3.jpg", "b/4.jpg", "b/note.txt", "b/.hidden.jpg", "[1].jpg"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(jpeg())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(*inputs: str, stdin: bytes = b"") -> list[str]:
    return [item.name for item in find_images(inputs, io.BytesIO(stdin))]


def read(item: Item) -> str:
    try:
        return str(len(item.read()))
    except ImageError as e:
        return str(e)


# ----------------------------------------------------------------------------------------------------------- patterns


@pytest.mark.parametrize(
    ("pattern", "want"),
    [
        ("*/*.jpg", ["a/1.jpg", "b/4.jpg"]),
        ("./a/?.*", ["./a/1.jpg", "./a/2.png"]),
        ("b/*", ["b/4.jpg", "b/note.txt"]),
        ("[ab]/[0-9].png", ["a/2.png"]),
        ("[1].jpg", ["[1].jpg"]),
        ("[[]1].jpg", ["[1].jpg"]),
        ("*", ["[1].jpg", "a/1.jpg", "a/2.png", "a/x/3.jpg", "b/4.jpg"]),
        ("**/*.jpg", ["[1].jpg", "a/1.jpg", "a/x/3.jpg", "b/4.jpg"]),
        ("a/**", ["a/1.jpg", "a/2.png", "a/x/3.jpg"]),
        ("a/**/3.jpg", ["a/x/3.jpg"]),
        ("**/x/**", ["a/x/3.jpg"]),
        ("**/*.txt", ["b/note.txt"]),
        ("*.tif", ["*.tif"]),
        ("**/*.tif", ["**/*.tif"]),
    ],
)
def test_patterns(here: Path, pattern: str, want: list[str]) -> None:
    assert names(pattern) == want


def test_absolute_pattern(here: Path) -> None:
    assert names(f"{here}/**/4.jpg") == names(f"{here}/*/4.jpg") == [f"{here}/b/4.jpg"]


def test_pattern_without_a_match_is_a_missing_file(here: Path) -> None:
    (item,) = find_images(["nothing/*.jpg"])
    assert read(item) == "missing: no such file"


def test_deep_pattern_ends_where_links_go_round(here: Path) -> None:
    for name in ("a/up", "b/up", "a/x/up", "a/x/up2"):
        (here / name).symlink_to(here)
    assert names("**/*.jpg") == ["[1].jpg", "a/1.jpg", "a/x/3.jpg", "b/4.jpg"]


# --------------------------------------------------------------------------------------------------------------- list


def test_list_on_standard_input(here: Path) -> None:
    want = ["b/4.jpg", "a/1.jpg", "a/2.png", "a/x/3.jpg", "gone.jpg", "*.jpg"]
    for stdin in (
        b"b/4.jpg\na\ngone.jpg\n*.jpg\n",
        b"b/4.jpg\r\na\r\n\r\ngone.jpg\r\n*.jpg",
        b"b/4.jpg\0a\0gone.jpg\0*.jpg\0",
    ):
        assert names("-", stdin=stdin) == want
    assert names("a/1.jpg", "-", stdin=b"b") == ["a/1.jpg", "b/4.jpg"]
    assert names("-", stdin=b"") == []


def test_list_with_any_bytes(here: Path) -> None:
    strange = os.fsdecode(b"line\nbreak \xff.jpg")
    Path(strange).write_bytes(jpeg())
    items = list(find_images(["-"], io.BytesIO(os.fsencode(strange) + b"\0a/1.jpg\0")))
    assert [i.name for i in items] == [strange, "a/1.jpg"]
    assert read(items[0]) == str(len(jpeg()))


def test_empty_folder_in_a_list_has_its_row(here: Path) -> None:
    (here / "empty").mkdir()
    items = list(find_images(["-"], io.BytesIO(b"a/1.jpg\nempty\nb\n")))
    assert [i.name for i in items] == ["a/1.jpg", "empty", "b/4.jpg"]
    assert read(items[1]) == "no image in it"


def test_standard_input_twice() -> None:
    with pytest.raises(DataError, match="twice"):
        names("-", "-")


def test_no_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(DataError, match="no standard input"):
        list(find_images(["-"]))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.binary(min_size=1, max_size=9).filter(lambda b: b"\0" not in b and b.strip(b"\r"))), st.integers(1, 7)
)
def test_lists_come_back_however_they_are_cut(listed: list[bytes], size: int) -> None:
    from marrowscope.infer import inputs

    class Slow(io.BytesIO):
        def read1(self, _: int | None = -1, /) -> bytes:
            return super().read1(size)

    whole = b"".join(name.replace(b"\n", b"x") + b"\n" for name in listed)
    want = [os.fsdecode(name.replace(b"\n", b"x").removesuffix(b"\r")) for name in listed]
    assert list(inputs.listed(Slow(whole))) == want


def test_list_through_a_real_pipe(here: Path, tmp_path: Path, model: Classifier) -> None:
    code = (
        "import sys; from pathlib import Path; from marrowscope.infer import Classifier, predict_files\n"
        "print(predict_files(Classifier.load(sys.argv[1]), ['-'], Path('out.csv')).ok)"
    )
    path = write_model(tmp_path / "tiny.onnx")
    done = subprocess.run([sys.executable, "-c", code, path], input=b"a\nb\n", capture_output=True)
    assert (done.stdout, done.stderr) == (b"4\n", b"")


# ----------------------------------------------------------------------------------------------------------- archives


def content() -> dict[str, bytes]:
    return {
        "z/2.jpg": jpeg(2), "z/1.jpg": jpeg(1), "z/readme.txt": b"text", "z/bad.jpg": b"text", "z/empty.png": b"",
        "__MACOSX/z/._1.jpg": b"junk", "z/.x.jpg": b"junk", "клетка.png": jpeg(3),
    }  # fmt: skip


def make_zip(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as z:
        z.mkdir("z.jpg")
        for name, data in files.items():
            z.writestr(name, data)
    return path


def make_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as t:  # type: ignore[call-overload]
        folder = tarfile.TarInfo("z.jpg")
        folder.type = tarfile.DIRTYPE
        t.addfile(folder)
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            t.addfile(info, io.BytesIO(data))
    return path


MAKERS = {
    "c.zip": lambda p, f: make_zip(p, f),
    "stored.ZIP": lambda p, f: make_zip(p, f, zipfile.ZIP_STORED),
    "c.tar": lambda p, f: make_tar(p, f),
    "c.tar.gz": lambda p, f: make_tar(p, f, "w:gz"),
    "c.tgz": lambda p, f: make_tar(p, f, "w:gz"),
    "c.tar.bz2": lambda p, f: make_tar(p, f, "w:bz2"),
    "c.tar.xz": lambda p, f: make_tar(p, f, "w:xz"),
}


@pytest.mark.parametrize("name", MAKERS)
def test_archives(tmp_path: Path, model: Classifier, name: str) -> None:
    path = str(MAKERS[name](tmp_path / name, content()))
    want = [f"{path}/{n}" for n in ("z/2.jpg", "z/1.jpg", "z/bad.jpg", "z/empty.png", "клетка.png")]
    assert names(path) == want
    got = predict_to_predictions(model, [path], workers=3)
    assert got.paths == tuple(want)
    assert [images.cause(s) for s in got.status] == ["ok", "ok", "not a known picture format", "empty file", "ok"]
    np.testing.assert_allclose(got.probs_NC[[0, 1, 4]], model.predict_proba([jpeg(2), jpeg(1), jpeg(3)]), atol=1e-6)


@pytest.mark.parametrize("name", MAKERS)
def test_archive_without_images(tmp_path: Path, name: str) -> None:
    path = MAKERS[name](tmp_path / name, {"readme.txt": b"text"})
    with pytest.raises(DataError, match="holds no image"):
        names(str(path))


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.8])
def test_truncated_archives_have_a_row_that_says_so(tmp_path: Path, name: str, share: float) -> None:
    path = MAKERS[name](tmp_path / name, {f"{i}.jpg": jpeg(i) for i in range(20)})
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    reasons = [read(item) for item in find_images([str(path)])]
    assert images.cause(reasons[-1]) == "damaged archive"
    assert all(r.isdigit() for r in reasons[:-1])
    assert len(reasons) <= 21


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tgz"])
def test_file_of_something_else(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"text, and nothing but text. " * 100)
    (item,) = find_images([tmp_path / name])
    assert item.name == str(tmp_path / name)
    assert read(item).startswith("damaged archive: ")


def test_missing_archive_and_folder_of_that_name(tmp_path: Path) -> None:
    (item,) = find_images([tmp_path / "gone.zip"])
    assert read(item) == "missing: no such file"
    (tmp_path / "folder.tar").mkdir()
    (tmp_path / "folder.tar" / "x.jpg").write_bytes(jpeg())
    assert names(str(tmp_path / "folder.tar")) == [str(tmp_path / "folder.tar" / "x.jpg")]


def test_archives_in_a_folder_stay_closed(tmp_path: Path) -> None:
    make_zip(tmp_path / "c.zip", content())
    (tmp_path / "x.jpg").write_bytes(jpeg())
    assert names(str(tmp_path)) == [str(tmp_path / "x.jpg")]


def test_tar_members_that_are_no_files(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "c.tar", "w") as t:
        for name, kind in [("link.jpg", tarfile.SYMTYPE), ("pipe.jpg", tarfile.FIFOTYPE), ("dev.jpg", tarfile.CHRTYPE)]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            t.addfile(info)
    assert [read(i) for i in find_images([tmp_path / "c.tar"])] == ["not a regular file"] * 3


def test_member_that_unpacks_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_BYTES", 5000)
    for name in ("c.zip", "c.tar.gz"):
        path = MAKERS[name](tmp_path / name, {"0.jpg": b"x", "bomb.jpg": b"\0" * 20_000_000, "1.jpg": b"x"})
        reasons = [read(i) for i in find_images([path])]
        assert [images.cause(r) for r in reasons] == ["1", "file too large", "1"]


def test_zip_that_lies_about_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_zip(tmp_path / "c.zip", {"bomb.jpg": b"\0" * 20_000_000})
    data = path.read_bytes()
    path.write_bytes(data.replace(struct.pack("<I", 20_000_000), struct.pack("<I", 100)))
    monkeypatch.setattr(images, "MAX_BYTES", 5000)
    (item,) = find_images([path])
    tracemalloc.start()
    assert images.cause(read(item)) in {"damaged archive", "file too large"}
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()


def test_encrypted_zip(tmp_path: Path) -> None:
    data = bytearray(make_zip(tmp_path / "c.zip", {"x.jpg": jpeg()}).read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.rindex(mark) + offset] |= 1
    (tmp_path / "c.zip").write_bytes(data)
    (item,) = find_images([tmp_path / "c.zip"])
    assert read(item).startswith("unreadable: encrypted")


def test_memory_does_not_grow_with_a_tar(tmp_path: Path, model: Classifier) -> None:
    path = make_tar(tmp_path / "c.tar", {f"{i:06}.jpg": b"\xff\xd8 damaged" * 500 for i in range(4000)})
    tracemalloc.start()
    predict_files(model, [path], tmp_path / "out.csv", batch_size=4)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < path.stat().st_size / 4


def test_bytes_held_are_bounded(model: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "MAX_HELD", 10_000)
    out = 0
    most = 0

    def items() -> Iterator[Item]:
        nonlocal out
        for i in range(100):
            out += 1
            yield Item(str(i), lambda: b"\0" * 4000, held=4000)

    for i, (name, _) in enumerate(predict._load_ahead(items(), model, 2, 1000)):
        assert name == str(i)
        most = max(most, out - i)
    assert most <= 3


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(sorted(MAKERS)),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=5)), min_size=1, max_size=4),
)
def test_mutated_archives_never_crash(tmp_path: Path, name: str, patches: list[tuple[float, bytes]]) -> None:
    data = bytearray(MAKERS[name](tmp_path / name, {"a.jpg": jpeg(), "b.jpg": b"x" * 600}).read_bytes())
    for place, patch in patches:
        at = int(place * len(data))
        data[at : at + len(patch)] = patch
    (tmp_path / name).write_bytes(data)
    for item in archives.members(str(tmp_path / name)):
        read(item)
