"""The images in .zip and .tar files, without unpacking them."""

# ruff: noqa: PTH113, PTH123 -- names stay as given

from __future__ import annotations

import os
import tarfile
import zipfile
from collections.abc import Iterator
from functools import partial

from marrowscope import images
from marrowscope.data.sources import is_image_name, is_junk
from marrowscope.errors import ImageError
from marrowscope.infer.items import Item, refused_item

_ZIP = (".zip",)
_TAR = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")


def is_archive(name: str) -> bool:
    """Whether there is a file that its ending calls an archive."""
    return name.lower().endswith(_ZIP + _TAR) and os.path.isfile(name)


def members(name: str) -> Iterator[Item]:
    """The images in an archive, in its order; what can't be read is an item whose reading gives the reason.

    Memory does not grow with a tar file; of a zip file its directory is held.
    """
    return _zip_members(name) if name.lower().endswith(_ZIP) else _tar_members(name)


def _is_taken(member: str) -> bool:
    return is_image_name(member) and not any(is_junk(part) for part in member.split("/") if part not in {".", ".."})


def _zip_members(name: str) -> Iterator[Item]:
    try:
        archive = zipfile.ZipFile(name)
    except Exception as e:  # BadZipFile, OSError, struct.error, ValueError, ...
        yield refused_item(name, _damaged(e))
        return
    for info in archive.infolist():
        if not info.is_dir() and _is_taken(info.filename):
            yield Item(f"{name}/{info.filename}", partial(_read_zip_member, archive, info))


def _read_zip_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    if info.flag_bits & 1:
        raise ImageError("unreadable: encrypted; unpack the archive first")
    try:
        with archive.open(info) as f:  # an archive may be read from many threads
            return _checked(f.read(images.MAX_BYTES + 1))
    except ImageError:
        raise
    except Exception as e:
        raise ImageError(_damaged(e)) from None


def _tar_members(name: str) -> Iterator[Item]:
    inside = name
    try:
        with tarfile.open(name, "r|*") as archive:
            while (info := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # it would keep all of them
                if not info.isdir() and _is_taken(info.name):
                    inside = f"{name}/{info.name}"
                    yield _tar_item(inside, archive, info)
                inside = name
        if not _ends_well(name):
            yield refused_item(name, "damaged archive: its end is missing")
    except Exception as e:  # TarError, OSError, EOFError, zlib.error, LZMAError, ValueError, ...
        yield refused_item(inside, _damaged(e))


def _ends_well(name: str) -> bool:
    """Whether an uncompressed tar file has the empty block at its end; `tarfile` takes one cut between two members."""
    with open(name, "rb") as f:
        try:
            tarfile.TarInfo.frombuf(f.read(tarfile.BLOCKSIZE), "utf-8", "surrogateescape")
        except tarfile.HeaderError:  # compressed, where unpacking finds a missing end
            return True
        f.seek(-tarfile.BLOCKSIZE, os.SEEK_END)
        return not any(f.read())


def _tar_item(name: str, archive: tarfile.TarFile, info: tarfile.TarInfo) -> Item:
    if not info.isreg():
        return refused_item(name, "not a regular file")
    if info.size > images.MAX_BYTES:
        return refused_item(name, f"file too large: {info.size:,} bytes; allowed are {images.MAX_BYTES:,}")
    file = archive.extractfile(info)
    assert file is not None  # it is a regular file
    data = file.read()
    return Item(name, partial(_checked, data), held=len(data))


def _checked(data: bytes) -> bytes:
    if len(data) > images.MAX_BYTES:
        raise ImageError(f"file too large: allowed are {images.MAX_BYTES:,} bytes")
    if not data:
        raise ImageError("empty file")
    return data


def _damaged(error: Exception) -> str:
    text = "".join(c if c.isprintable() else " " for c in str(error))
    if isinstance(error, OSError) and error.strerror:
        return f"unreadable: {error.strerror}"
    return f"damaged archive: {' '.join(text.split())[:80] or type(error).__name__}"
