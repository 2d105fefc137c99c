"""What the sources of a cluster's job stand for."""

from __future__ import annotations

import os
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import pytest

from marrowscope.errors import DataError, ImageError, StoreError
from marrowscope.infer import find_images

pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")

from marrowscope.cluster.listing import (  # noqa: E402
    LISTING,
    Entry,
    Listing,
    list_sources,
    part_size,
    publish,
    read_part,
)
from marrowscope.cluster.stores import Folder, find_objects, read_bytes  # noqa: E402


def listing(tmp_path: Path, *sources: object, stdin: bytes = b"") -> Listing:
    return list_sources([str(s) for s in sources], tmp_path / "listing.parquet", BytesIO(stdin))


def paths(found: Listing) -> list[str]:
    column: list[str] = pq.read_table(found.file).column("path").to_pylist()
    return column


def test_local_sources_are_those_of_predict(pictures: Path, tmp_path: Path) -> None:
    sources = [str(pictures / "b"), str(pictures / "a" / "*.png"), str(pictures / "broken.jpg"), str(tmp_path / "gone")]
    found = listing(tmp_path, *sources)
    assert paths(found) == [item.name for item in find_images(sources)]
    assert found.images == 12
    assert found.witness == str(pictures / "b" / "01.png")


def test_the_same_sources_give_the_same_listing(pictures: Path, tmp_path: Path) -> None:
    first, again = listing(tmp_path, pictures), listing(tmp_path, pictures)
    assert first == again
    (pictures / "a" / "00.png").rename(pictures / "a" / "0.png")
    assert listing(tmp_path, pictures).sha256 != first.sha256


def test_a_list_names_images(pictures: Path, tmp_path: Path) -> None:
    names = [f"{pictures}/a/00.png", "s3://far/cell.png", "s3://far/b.png", str(pictures / "b"), "gs://away/é.png"]
    (tmp_path / "list").write_text("\r\n".join(names), encoding="utf-8")
    want = [names[0], *names[1:3], *(f"{pictures}/b/{i:02}.png" for i in (1, 3, 5, 7, 9)), names[4]]
    assert paths(listing(tmp_path, f"@{tmp_path / 'list'}")) == want
    assert paths(listing(tmp_path, "-", stdin="\0".join(names).encode())) == want


def test_names_of_any_bytes_survive(tmp_path: Path, draw: Callable[[Path], None]) -> None:
    odd = [b"\xff\xfe.png", "ё‮ü.png".encode(), b"new\nline.png", b'"quote",.png']
    for name in odd:
        draw(tmp_path / "odd" / os.fsdecode(name))
    found = listing(tmp_path, tmp_path / "odd")
    publish(found, Folder(str(tmp_path / "target")), 3)
    file = pq.ParquetFile(tmp_path / "target" / LISTING)
    entries = [e for part in range(2) for e in read_part(file, part)]
    assert [e.item("/").name for e in entries] == [i.name for i in find_images([tmp_path / "odd"])]
    assert all(e.item("/").read().startswith(b"\x89PNG") for e in entries)
    assert str(tmp_path / "odd" / r"\xff\xfe.png") in [e.path for e in entries]


def test_relative_names_start_from_the_folder_of_the_job(pictures: Path) -> None:
    item = Entry.of("a/00.png").item(str(pictures))
    assert (item.name, item.read()) == ("a/00.png", (pictures / "a" / "00.png").read_bytes())


def test_what_listing_found_unreadable_stays_so() -> None:
    item = Entry.of("locked", "unreadable: Permission denied").item("/")
    with pytest.raises(ImageError, match="unreadable: Permission denied"):
        item.read()


@pytest.mark.parametrize(("images", "size"), [(1, 64), (60_000, 64), (100_000, 98), (8_388_608, 8192), (10**8, 8192)])
def test_part_size(images: int, size: int) -> None:
    assert part_size(images) == size


# -------------------------------------------------------------------------------------------------------------- refused


def test_an_image_named_twice_is_refused(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"5 images are named more than once, the first is .*/a/00.png"):
        listing(tmp_path, pictures, pictures / "a")


def test_archives_are_refused(pictures: Path, tmp_path: Path) -> None:
    with ZipFile(tmp_path / "cells.zip", "w") as z:
        z.write(pictures / "a" / "00.png", "deep/in/00.png")
    for source, stdin in ((tmp_path / "cells.zip", b""), ("-", str(tmp_path / "cells.zip").encode())):
        with pytest.raises(DataError, match=r"cells.zip is an archive; .* Unpack it"):
            listing(tmp_path, source, stdin=stdin)
    (tmp_path / "broken.zip").write_text("text")
    with pytest.raises(DataError, match=r"broken.zip is an archive"):
        listing(tmp_path, tmp_path / "broken.zip")


def test_a_folder_that_is_called_like_an_archive(pictures: Path, tmp_path: Path) -> None:
    pictures.rename(tmp_path / "cells.zip")
    assert listing(tmp_path, tmp_path / "cells.zip").images == 11


@pytest.mark.parametrize(
    ("sources", "reason"),
    [
        ([], "No input"),
        (["-", "-"], "given twice"),
        (["-"], "holds no image"),
        (["http://host/cells"], r"can't read from http://; allowed are s3://, gs://"),
    ],
)
def test_bad_sources(tmp_path: Path, sources: list[str], reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        listing(tmp_path, *sources)


def test_a_list_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"Can't read the list .*/none"):
        listing(tmp_path, f"@{tmp_path / 'none'}")


# --------------------------------------------------------------------------------------------------------------- stores


def test_objects_are_found_as_files_are(upload: Callable[[str, bytes], str], bucket: str, tmp_path: Path) -> None:
    keys = ["s/2.png", "s/1.JPG", "s/10/a b é%20.png", "s/10/.hidden.png", "s/.git/x.png", "s/notes.txt", "s2/3.tif"]
    for key in keys:
        upload(key, b"x")
        (tmp_path / "same" / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "same" / key).write_bytes(b"x")

    def both(source: str) -> list[str]:
        local = [i.name.removeprefix(f"{tmp_path}/same/") for i in find_images([str(tmp_path / "same" / source)])]
        remote = [n.removeprefix(f"s3://{bucket}/") for n in find_objects(f"s3://{bucket}/{source}")]
        assert sorted(remote) == sorted(local)
        assert "*" in source or remote == local
        return remote

    assert both("s") == ["s/1.JPG", "s/2.png", "s/10/a b é%20.png"]
    assert both("s/") == both("s")
    assert both("s*") == ["s/1.JPG", "s/2.png", "s/10/a b é%20.png", "s2/3.tif"]
    assert both("s*/[0-9].*") == ["s/1.JPG", "s/2.png", "s2/3.tif"]
    assert both("**/*.png") == ["s/2.png", "s/10/a b é%20.png"]
    assert both("s/2.png") == ["s/2.png"]
    assert list(find_objects(f"s3://{bucket}")) == [f"s3://{bucket}/{k}" for k in both("")]


def test_a_list_in_a_store(upload: Callable[[str, bytes], str], tmp_path: Path) -> None:
    name = upload("list.txt", b"s3://far/a.png\ns3://far/b.png\n")
    assert paths(listing(tmp_path, f"@{name}")) == ["s3://far/a.png", "s3://far/b.png"]


def test_reading_objects(upload: Callable[[str, bytes], str], bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = upload("x/ü #?.png", b"12345")
    assert read_bytes(name) == b"12345"
    for missing in (f"s3://{bucket}/none.png", f"s3://{bucket}/x", "s3://no-such-bucket-here/a.png"):
        with pytest.raises(ImageError, match="missing: no such file"):
            read_bytes(missing)
    with pytest.raises(ImageError, match="empty file"):
        read_bytes(upload("empty.png", b""))
    monkeypatch.setattr("marrowscope.images.MAX_BYTES", 4)
    with pytest.raises(ImageError, match="file too large: 5 bytes; allowed are 4"):
        read_bytes(name)


def test_nothing_in_the_store(upload: Callable[[str, bytes], str], bucket: str) -> None:
    upload("text/a.txt", b"x")
    for source, kind, reason in (
        (f"s3://{bucket}/none", DataError, "Nothing is at s3://"),
        (f"s3://{bucket}/none*", DataError, "holds no image"),
        (f"s3://{bucket}/text", DataError, "holds no image"),
        ("s3://no-such-bucket-here", DataError, "Nothing is at s3://no-such-bucket-here"),
        ("s3://no-such-bucket-here/a*", StoreError, "Can't list s3://no-such-bucket-here"),
        ("s3:///folder", StoreError, "names no bucket"),
    ):
        with pytest.raises(kind, match=reason):
            list(find_objects(source))
