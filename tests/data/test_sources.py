"""One result from a folder, a zip, a tar and Parquet files; archives that were made to do harm are refused."""

from __future__ import annotations

import importlib
import io
import json
import os
import pickle
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from marrowscope.data import archives
from marrowscope.data.classmap import ClassMap, read_class_map
from marrowscope.data.index import build_index
from marrowscope.data.sources import open_source
from marrowscope.errors import DataError, FileFormatError, ImageError, MissingExtraError, OutputError
from marrowscope.schema import OK, IndexRow, read_index, write_index


def picture(seed: int = 0, size: int = 20, form: str = "JPEG") -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, form)
    return out.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small collection with a broken file, an empty one, junk and a strange name."""
    root = tmp_path / "folder"
    files = {
        "BLA/0001-1000/BLA_00001.jpg": picture(1),
        "BLA/0001-1000/BLA_00002.jpg": picture(2)[:300],
        "LYT/клетка, 1.png": picture(3, form="PNG"),
        "EOS/empty.jpg": b"",
        "EOS/flat.bmp": b"",
        "README.txt": b"x",
        "BLA/._x.jpg": b"x",
    }
    Image.new("RGB", (300, 300)).save(tmp_path / "flat.bmp")
    files["EOS/flat.bmp"] = (tmp_path / "flat.bmp").read_bytes()
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def make_zip(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def make_tar(path: Path, members: dict[str, bytes], mode: Any = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def packed(folder: Path, kind: str) -> Path:
    path = folder.with_suffix(f".{kind.rpartition('-')[2]}")
    if kind.endswith("zip"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED if "stored" in kind else zipfile.ZIP_DEFLATED) as archive:
            for f in sorted(folder.rglob("*"), reverse=True):
                archive.write(f, f.relative_to(folder))
    else:
        with tarfile.open(path, "w", format=tarfile.GNU_FORMAT if "gnu" in kind else tarfile.PAX_FORMAT) as tar:
            tar.add(folder, ".")
    return path


@pytest.mark.parametrize("kind", ["stored-zip", "deflated-zip", "gnu-tar", "pax-tar"])
def test_archives_give_the_index_of_the_folder(folder: Path, kind: str) -> None:
    expected = build_index(folder)
    assert [r.status == OK for r in expected] == [True, False, False, True, True]
    told: list[str] = []
    assert build_index(packed(folder, kind), note=told.append) == expected
    assert told == ["Passed over, for their names are not those of pictures: 1 file (.txt 1)."]


@pytest.mark.parametrize("kind", ["deflated-zip", "pax-tar"])
def test_archives_are_read_in_any_order_from_threads_and_copies(folder: Path, kind: str) -> None:
    source = open_source(packed(folder, kind))
    names = [n for n in source.names if "empty" not in n] * 50
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(source.read, names)) == [(folder / n).read_bytes() for n in names]
    copy = pickle.loads(pickle.dumps(source))
    assert copy.read(names[0]) == source.read(names[0])
    assert source.has(names[0])
    assert not source.has("BLA/none.jpg")
    assert source.size("BLA/none.jpg") == 0
    with pytest.raises(ImageError, match="missing"):
        source.read("BLA/none.jpg")


@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize(
    "name",
    ["../BLA/x.jpg", "BLA/../../x.jpg", "/BLA/x.jpg", "C:/BLA/x.jpg", "BLA\\..\\..\\x.jpg", "\\\\host\\BLA\\x.jpg"],
)
def test_members_that_point_outside_are_refused(tmp_path: Path, make: Callable[..., Path], name: str) -> None:
    archive = make(tmp_path / "a.zip" if make is make_zip else tmp_path / "a.tar", {"BLA/a.jpg": picture(), name: b"x"})
    with pytest.raises(DataError, match=r"is refused: its member .* points outside"):
        build_index(archive)


def test_archive_that_expands_past_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = make_zip(tmp_path / "a.zip", {f"BLA/{i}.bmp": bytes(1_000_000) for i in range(3)})
    monkeypatch.setattr(archives, "MAX_EXPANSION", 500)
    with pytest.raises(DataError, match="claim to expand to 3,000,000, more than 500 times"):
        build_index(bomb)


def test_member_over_the_limit_is_a_row_with_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_BYTES", 50_000)
    members = {"BLA/a.jpg": picture(), "BLA/big.bmp": os.urandom(60_000)}
    for archive in (make_zip(tmp_path / "a.zip", members), make_tar(tmp_path / "a.tar", members)):
        status = {r.path: r.status for r in build_index(archive)}
        assert status["BLA/a.jpg"] == OK
        assert status["BLA/big.bmp"].startswith("file too large: 60,0")


def test_zip_that_lies_about_size_or_content_is_a_row_with_a_reason(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"BLA/a.jpg": picture(1), "BLA/b.bmp": bytes(100_000)})
    data = archive.read_bytes()
    # The central directory says 100,000 unpacked bytes; let it say 99.
    assert data.count(struct.pack("<L", 100_000)) == 2
    at = data.rindex(struct.pack("<L", 100_000))
    archive.write_bytes(data[:at] + struct.pack("<L", 99) + data[at + 4 :])
    status = {r.path: r.status for r in build_index(archive)}
    assert status["BLA/a.jpg"] == OK
    assert "checksum" in status["BLA/b.bmp"]


def test_zip_with_unusual_members(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"BLA/a.jpg": picture(), "BLA/locked.jpg": picture(1)})
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\1\2", data.index(b"PK\1\2") + 1)
    data[at + 8] |= 1
    path.write_bytes(bytes(data))
    with zipfile.ZipFile(path, "a", zipfile.ZIP_LZMA) as archive:
        archive.writestr("BLA/lzma.jpg", picture(2))
        link = zipfile.ZipInfo("BLA/link.jpg")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd", zipfile.ZIP_STORED)
    status = {r.path: r.status for r in build_index(path)}
    assert status.pop("BLA/a.jpg") == OK
    assert status["BLA/locked.jpg"].startswith("unreadable: encrypted")
    assert status["BLA/lzma.jpg"].startswith("unreadable: compression method 14")
    assert status["BLA/link.jpg"] == "not a regular file"


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_member_that_stands_twice_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("BLA/a.jpg", picture())
        archive.writestr("BLA//a.jpg", picture(1))
    with pytest.raises(DataError, match=r"'BLA/a.jpg' twice"):
        build_index(tmp_path / "a.zip")


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_links_within_a_tar_are_followed_and_others_refused(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tar", {"./store/a.jpg.data": picture(1), "./BLA/b.jpg": picture(2)})
    with tarfile.open(path, "a") as archive:
        archive.addfile(link("BLA/a.jpg", "../store/a.jpg.data"))
        archive.addfile(link("BLA/c.jpg", "BLA/a.jpg", tarfile.LNKTYPE))
        archive.addfile(link("BLA/loop.jpg", "loop.jpg"))
        archive.addfile(link("BLA/gone.jpg", "gone2.jpg"))
        archive.addfile(link("BLA/pipe.jpg", "", tarfile.FIFOTYPE))
    rows = {r.path[4:]: r for r in build_index(path)}
    assert rows["a.jpg"].status == rows["b.jpg"].status == rows["c.jpg"].status == OK
    assert rows["a.jpg"].sha256 == rows["c.jpg"].sha256
    assert rows["loop.jpg"].status == rows["pipe.jpg"].status == "not a regular file"
    assert rows["gone.jpg"].status.startswith("missing: a link")
    for target in ("/etc/passwd", "../../x.jpg"):
        with tarfile.open(tmp_path / "out.tar", "w") as archive:
            archive.addfile(link("BLA/a.jpg", target))
        with pytest.raises(DataError, match="is a link to the outside"):
            build_index(tmp_path / "out.tar")


@pytest.mark.parametrize(
    ("name", "data", "match"),
    [
        ("a.zip", b"not a zip", "Can't read the archive .* zip file"),
        ("a.zip", b"", "Can't read the archive"),
        ("a.tar", b"not a tar" * 100, "Can't read the archive"),
        ("a.txt", b"x", "is a file, not a folder"),
        ("a.parquet", b"x", "Can't read the Parquet file"),
    ],
)
def test_what_is_no_archive(tmp_path: Path, name: str, data: bytes, match: str) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=match):
        build_index(tmp_path / name)


def test_archives_that_are_cut_off(tmp_path: Path) -> None:
    members = {f"BLA/{i}.jpg": picture(i) for i in range(5)}
    tar, zipped = make_tar(tmp_path / "a.tar", members), make_zip(tmp_path / "a.zip", members)
    size = 512 + -(-len(members["BLA/0.jpg"]) // 512) * 512
    for cut in (size, size + 300, size + 600):
        (tmp_path / "b.tar").write_bytes(tar.read_bytes()[:cut])
        with pytest.raises(DataError, match=r"cut off|Can't read"):
            build_index(tmp_path / "b.tar")
    (tmp_path / "b.zip").write_bytes(zipped.read_bytes()[:3000])
    with pytest.raises(DataError, match="Can't read"):
        build_index(tmp_path / "b.zip")
    whole = open_source(zipped)
    assert len(whole.names) == 5
    zipped.write_bytes(zipped.read_bytes()[:50])
    with pytest.raises(ImageError, match="ends too early"):
        whole.read("BLA/4.jpg")


def test_compressed_tar_is_told(tmp_path: Path) -> None:
    make_tar(tmp_path / "a.tar.gz", {"BLA/a.jpg": picture()}, "w:gz")
    with pytest.raises(DataError, match=r"compressed tar.*gunzip"):
        build_index(tmp_path / "a.tar.gz")
    make_zip(tmp_path / "empty.zip", {})
    with pytest.raises(DataError, match="No picture found"):
        build_index(tmp_path / "empty.zip")


# --------------------------------------------------------------------------------------------------------- parquet


def make_parquet(path: Path, pictures: list[bytes | None], labels: list[Any], **options: Any) -> Path:
    pa = pytest.importorskip("pyarrow")
    parquet = importlib.import_module("pyarrow.parquet")
    images = [{"bytes": p, "path": None} for p in pictures] if options.get("struct", True) else pictures
    table = pa.table({"image": images, options.get("label", "label"): labels, "other": [1] * len(labels)})
    if "names" in options:
        features = {"info": {"features": {"label": {"names": options["names"], "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, row_group_size=2)
    return path


def test_parquet_with_text_labels(tmp_path: Path) -> None:
    pictures = [picture(i) for i in range(5)]
    path = make_parquet(
        tmp_path / "a.parquet", [*pictures, b"junk", None], ["BLA", "LYT", "EOS", "BLA", "BLA", "LYT", "LYT"]
    )
    rows = build_index(path)
    assert [(r.path, r.label) for r in rows[:3]] == [
        ("a.parquet/00000000", "BLA"),
        ("a.parquet/00000001", "LYT"),
        ("a.parquet/00000002", "EOS"),
    ]
    assert [r.status == OK for r in rows] == [True] * 5 + [False] * 2
    assert rows[6].status == "empty file"
    source = open_source(path)
    assert [source.read(r.path) for r in rows[:5]] == pictures
    assert [source.read(r.path) for r in rows[4::-1]] == pictures[::-1]
    assert pickle.loads(pickle.dumps(source)).read(rows[3].path) == pictures[3]
    with pytest.raises(ImageError, match="missing"):
        source.read("a.parquet/00000099")


def test_parquet_folder_with_numbered_labels_of_a_hub(tmp_path: Path) -> None:
    names = ["blast", "LYT"]
    make_parquet(tmp_path / "data/train-0.parquet", [picture(0), picture(1)], [0, 1], names=names)
    make_parquet(tmp_path / "data/train-1.parquet", [picture(2)], [1], names=names, struct=False)
    with pytest.raises(DataError, match=r"Unknown class label in .*: 'blast' \(1 picture\)"):
        build_index(tmp_path)
    rows = build_index(tmp_path, classes=ClassMap({"blast": "BLA"}))
    assert [(r.path, r.label, r.original) for r in rows] == [
        ("data/train-0.parquet/00000000", "BLA", "blast"),
        ("data/train-0.parquet/00000001", "LYT", ""),
        ("data/train-1.parquet/00000000", "LYT", ""),
    ]
    numbers = make_parquet(tmp_path / "n.parquet", [picture()], [3])
    assert build_index(numbers, classes=ClassMap({"3": "EOS"}))[0].label == "EOS"


def test_parquet_that_does_not_fit(tmp_path: Path) -> None:
    path = make_parquet(tmp_path / "a.parquet", [picture()], ["BLA"], label="stage")
    with pytest.raises(DataError, match=r"has no label column.*columns are image, stage, other"):
        build_index(path)
    bad = make_parquet(tmp_path / "b.parquet", [picture()], [7], names=["BLA"])
    with pytest.raises(DataError, match="label 7 is none of the 1"):
        build_index(bad)
    (tmp_path / "BLA").mkdir()
    with pytest.raises(DataError, match=r"holds Parquet files and also .*'BLA'"):
        build_index(tmp_path)


def test_damaged_parquet_is_told_or_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_parquet(tmp_path / "a.parquet", [picture(i) for i in range(4)], ["BLA"] * 4)
    whole = path.read_bytes()
    for at in range(4, len(whole), 97):
        path.write_bytes(whole[:at] + b"\xff" * 8 + whole[at + 8 :])
        try:
            assert len(build_index(path, jobs=1)) == 4
        except DataError as e:
            assert "a.parquet" in str(e)  # noqa: PT017
    path.write_bytes(whole)
    monkeypatch.setattr("marrowscope.data.parquet.MAX_GROUP_BYTES", 100)
    with pytest.raises(DataError, match="row group of"):
        build_index(path)


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "a.parquet").write_bytes(b"x")
    with pytest.raises(MissingExtraError, match=r"marrowscope\[parquet\]"):
        build_index(tmp_path)


# -------------------------------------------------------------------------------------------------------- class map


def test_class_map_by_folder_and_by_file_prefix(tmp_path: Path) -> None:
    for i, name in enumerate(
        ["neutrophil/BNE_1.jpg", "neutrophil/SNE_1.jpg", "eosinophil/x/a.jpg", "platelet/p.jpg", "LYT/l.jpg"]
    ):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(picture(i))
    (tmp_path / "map.toml").write_text(
        '[classes]\n"neutrophil/BNE_*" = "NGB"\nneutrophil = "NGS"\neosinophil = "EOS"\nplatelet = "drop"\n'
    )
    classes = read_class_map(tmp_path / "map.toml")
    told: list[str] = []
    rows = build_index(tmp_path / "data", classes=classes, note=told.append)
    assert [(r.path, r.label, r.original) for r in rows] == [
        ("LYT/l.jpg", "LYT", ""),
        ("eosinophil/x/a.jpg", "EOS", "eosinophil"),
        ("neutrophil/BNE_1.jpg", "NGB", "neutrophil/BNE_*"),
        ("neutrophil/SNE_1.jpg", "NGS", "neutrophil"),
    ]
    assert told == ["Dropped by the class map: 1 picture (platelet 1)."]
    write_index(tmp_path / "index.csv", rows)
    assert (tmp_path / "index.csv").read_text().startswith("path,label,width,height,bytes,sha256,status,original\n")
    assert read_index(tmp_path / "index.csv") == rows
    with pytest.raises(DataError, match=r"'eosinophil/x', 'neutrophil', 'platelet'"):
        build_index(tmp_path / "data")
    with pytest.raises(DataError, match="drops every picture"):
        build_index(tmp_path / "data/platelet", classes=ClassMap({"*/*": "drop", "p.jpg": "drop"}))


def test_class_map_nearest_folder_wins() -> None:
    classes = ClassMap({"outer": "BLA", "inner": "EOS", "*/x_?.jpg": "LYT", "inner/x_1.jpg": "MON"})
    assert classes.find("outer/a.jpg") == ("BLA", "outer")
    assert classes.find("outer/inner/a.jpg") == ("EOS", "inner")
    assert classes.find("inner/outer/deep/a.jpg") == ("BLA", "outer")
    assert classes.find("outer/x_2.jpg") == ("LYT", "*/x_?.jpg")
    assert classes.find("outer/PMO/a.jpg") is None
    assert classes.find("other/a.jpg") is None
    assert classes.find("outer") == ("BLA", "outer")
    with pytest.raises(DataError, match=r"two things of 'inner/x_1.jpg'"):
        classes.find("inner/x_1.jpg")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("x = [", "not valid TOML"),
        ("", "it has nothing"),
        ("[classes]", "one table"),
        ('[klasses]\na = "BLA"', "it has klasses"),
        ('[classes]\na = "BLAST"\nb = 3', "unknown classes: 'a' = 'BLAST', 'b' = 3.*Allowed: ABE"),
    ],
)
def test_class_map_mistakes(tmp_path: Path, text: str, match: str) -> None:
    (tmp_path / "map.toml").write_text(text)
    with pytest.raises(FileFormatError, match=match):
        read_class_map(tmp_path / "map.toml")
    with pytest.raises(FileFormatError, match="No such file"):
        read_class_map(tmp_path / "none.toml")


# --------------------------------------------------------------------------------------------------------- journal


def collection(root: Path, n: int) -> Path:
    for i in range(n):
        (root / "BLA").mkdir(parents=True, exist_ok=True)
        (root / f"BLA/{i:03}.png").write_bytes(picture(i, form="PNG"))
    return root


class StoppedError(Exception):
    pass


def test_index_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, journal = collection(tmp_path / "data", 100), tmp_path / "journal"

    def stop(done: int, total: int) -> None:
        if done >= 64:
            raise StoppedError

    with pytest.raises(StoppedError):
        build_index(data, journal=journal, progress=stop, jobs=1)
    with journal.open("a") as f:
        f.write('["12:34", ["BLA/0')  # killed while writing
    (data / "BLA/005.png").write_bytes(picture(999, form="PNG"))
    reads: list[str] = []
    real = importlib.import_module("marrowscope.data.index").decode
    monkeypatch.setattr("marrowscope.data.index.decode", lambda b: (reads.append(""), real(b))[1])
    rows = build_index(data, journal=journal, jobs=1)
    assert len(reads) == 36 + 1
    reads.clear()
    assert build_index(data, journal=journal) == rows
    assert reads == []
    assert build_index(data) == rows


def test_journal_of_something_else_is_begun_anew(tmp_path: Path) -> None:
    data = collection(tmp_path / "data", 3)
    rows = build_index(data)
    for text in (
        "",
        "hello\n",
        '"marrowscope index journal 1"\n[1, 2]\n{}\n["a", ["BLA/000.png", 1, 2, 3, 4, 5, 6]]\n',
        "\xff",
    ):
        (tmp_path / "journal").write_text(text)
        assert build_index(data, journal=tmp_path / "journal") == rows
        assert build_index(data, journal=tmp_path / "journal") == rows
    with pytest.raises(OutputError, match="journal"):
        build_index(data, journal=tmp_path)


def test_index_row_has_room_for_groups(tmp_path: Path) -> None:
    rows = [
        IndexRow("BLA/a.jpg", "BLA", 1, 2, 3, "x", OK, group="g"),
        IndexRow("BLA/b.jpg", "BLA", 1, 2, 3, "x", OK, patient="p"),
    ]
    write_index(tmp_path / "index.csv", rows)
    assert (tmp_path / "index.csv").read_text().splitlines() == [
        "path,label,width,height,bytes,sha256,status,group,patient",
        "BLA/a.jpg,BLA,1,2,3,x,ok,g,",
        "BLA/b.jpg,BLA,1,2,3,x,ok,,p",
    ]
    assert read_index(tmp_path / "index.csv") == rows
    (tmp_path / "index.csv").write_text("path,label,width,height,bytes,sha256,status,patient,group\n")
    with pytest.raises(FileFormatError, match="first line must be"):
        read_index(tmp_path / "index.csv")
