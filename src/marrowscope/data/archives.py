"""Pictures in .zip and .tar files, read one at a time and in any order, without unpacking.

Nothing of an archive is ever written to the disk. One that names a member outside of itself, or that claims to expand
beyond reason, is refused as a whole all the same: such a file was made to do harm, and its pictures are not to be
trusted.
"""

from __future__ import annotations

import functools
import os
import re
import stat
import tarfile
import zipfile
import zlib
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from marrowscope.data.sources import Source, is_image_name, is_junk
from marrowscope.errors import DataError, ImageError
from marrowscope.images import MAX_BYTES

MAX_EXPANSION = 1200
"""Unpacked size over packed size; above what the best compressor of single files can do (about 1,030 for zip)."""

MAX_LINKS = 20
"""Links that are followed until a picture is reached."""

_TARS_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz", ".tar.zst")


class Member(NamedTuple):
    """Where a picture lies in an archive."""

    offset: int
    """Of its data in a tar; of its own header in a zip, which says where the data begin."""
    packed: int
    size: int
    crc: int | None
    method: int
    """Compression method of zip; 0 is none."""
    problem: str = ""


class ArchiveSource(Source):
    """What zip and tar have in common: a table of members, and positional reads that threads and forks can share."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.where = str(path)
        self.ignored = Counter()

    @functools.cached_property
    def names(self) -> list[str]:
        return sorted(self._members)

    @functools.cached_property
    def _members(self) -> dict[str, Member]:
        try:
            return self._list()
        except DataError:
            raise
        except Exception as e:  # BadZipFile, TarError, OSError, EOFError, struct.error, ValueError, ...
            raise DataError(f"Can't read the archive {self.path}: {_text(e)}. Get it anew.") from None

    @abstractmethod
    def _list(self) -> dict[str, Member]:
        """All members that are pictures, by name."""

    def has(self, name: str) -> bool:
        return name in self._members

    def size(self, name: str) -> int:
        return self._members[name].size if name in self._members else 0

    def read(self, name: str) -> bytes:
        member = self._members.get(name)
        if member is None:
            raise ImageError("missing: no such file in the archive")
        if member.problem:
            raise ImageError(member.problem)
        if member.size > MAX_BYTES:
            raise ImageError(f"file too large: {member.size:,} bytes; allowed are {MAX_BYTES:,}")
        try:
            data = self._unpack(member)
        except ImageError:
            raise
        except Exception as e:
            raise ImageError(f"damaged archive: {_text(e)}") from None
        if not data:
            raise ImageError("empty file")
        return data

    @abstractmethod
    def _unpack(self, member: Member) -> bytes:
        """The bytes of one member."""

    @functools.cached_property
    def _handle(self) -> int:
        return os.open(self.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))

    def _bytes(self, offset: int, size: int) -> bytes:
        """Read at a place without moving a position that others share."""
        data = os.pread(self._handle, size, offset)
        if len(data) != size:
            raise ImageError("damaged archive: it ends too early")
        return data

    def stamp(self, name: str) -> str:
        status = self.path.stat()
        return f"{status.st_size}:{status.st_mtime_ns}"

    def __getstate__(self) -> dict[str, object]:  # a spawned worker opens the file itself
        return {k: v for k, v in self.__dict__.items() if k != "_handle"}

    def __del__(self) -> None:
        handle = self.__dict__.pop("_handle", None)
        if handle is not None:
            os.close(handle)

    def _take(self, names: Iterable[str]) -> dict[str, str]:
        """Of all member names (``/`` at the end of folders), those of pictures: in our form -> as they stand.

        Raises:
            DataError: One points outside, or two are the same.
        """
        taken: dict[str, str] = {}
        for raw in names:
            name = self._inside(raw)
            if name is None or raw.endswith("/") or any(is_junk(p) for p in name.split("/")):
                continue
            if not is_image_name(name):
                self.ignored[PurePosixPath(name).suffix.lower()] += 1
            elif name in taken:
                raise DataError(f"The archive {self.path} holds {name!r} twice; pack it anew from a folder.")
            else:
                taken[name] = raw
        return taken

    def _inside(self, raw: str) -> str | None:
        """A member's name in our form, None for the top folder itself."""
        parts = raw.replace("\\", "/").split("/")
        if ".." in parts or raw.startswith(("/", "\\")) or re.match(r"[A-Za-z]:[/\\]", raw):
            raise DataError(
                f"The archive {self.path} is refused: its member {raw[:200]!r} points outside of it. "
                "Get it from a source that you trust, or pack it anew from a folder."
            )
        return "/".join(p for p in raw.split("/") if p not in {"", "."}) or None

    def _check_expansion(self, total: int) -> None:
        packed = self.path.stat().st_size
        if total > MAX_EXPANSION * packed:
            raise DataError(
                f"The archive {self.path} is refused: {packed:,} bytes claim to expand to {total:,}, more than "
                f"{MAX_EXPANSION} times. Get it from a source that you trust."
            )


class ZipSource(ArchiveSource):
    """A .zip file with stored or deflated members."""

    def _list(self) -> dict[str, Member]:
        with zipfile.ZipFile(self.path) as archive:
            infos = archive.infolist()
        self._check_expansion(sum(i.file_size for i in infos))
        by_name: dict[str, zipfile.ZipInfo] = {}
        for i in infos:
            by_name.setdefault(i.filename, i)
        taken = self._take(i.filename for i in infos)
        return {name: _zip_member(by_name[raw]) for name, raw in taken.items()}

    def _unpack(self, member: Member) -> bytes:
        header = self._bytes(member.offset, 30)
        if header[:4] != b"PK\3\4":
            raise ImageError("damaged archive: no member at its place")
        extra = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        data = self._bytes(member.offset + 30 + extra, member.packed)
        if member.method == zipfile.ZIP_DEFLATED:
            # The size is the directory's claim; one byte more is enough to find it a lie.
            data = zlib.decompressobj(-15).decompress(data, member.size + 1)
        if len(data) != member.size or zlib.crc32(data) != member.crc:
            raise ImageError("damaged archive: size or checksum of the member is wrong")
        return data


def _zip_member(info: zipfile.ZipInfo) -> Member:
    problem = ""
    if info.flag_bits & 1:
        problem = "unreadable: encrypted; unpack the archive first"
    elif info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        problem = f"unreadable: compression method {info.compress_type} of zip; pack with deflate, or store"
    elif stat.S_IFMT(info.external_attr >> 16) not in {0, stat.S_IFREG}:
        problem = "not a regular file"
    elif info.compress_size > MAX_BYTES:
        problem = f"file too large: {info.compress_size:,} bytes; allowed are {MAX_BYTES:,}"
    return Member(info.header_offset, info.compress_size, info.file_size, info.CRC, info.compress_type, problem)


class TarSource(ArchiveSource):
    """An uncompressed .tar file; links within it are followed."""

    def _list(self) -> dict[str, Member]:
        try:
            archive = tarfile.open(self.path, "r:", encoding="utf-8", errors="surrogateescape")  # noqa: SIM115
        except tarfile.ReadError:
            if self.path.name.lower().endswith(_TARS_PACKED):
                raise DataError(packed_tar(self.path)) from None
            raise
        with archive:
            infos = archive.getmembers()
            end = archive.offset
        # `tarfile` takes a file that was cut between two members; a whole one has an empty block there.
        if os.pread(self._handle, tarfile.BLOCKSIZE, end) != bytes(tarfile.BLOCKSIZE):
            raise DataError(f"The archive {self.path} is cut off: its end is missing. Get it anew.")
        taken = self._take(i.name + ("/" if i.isdir() else "") for i in infos)
        by_name = {self._inside(i.name) or "": i for i in infos}
        return {name: self._member(name, by_name) for name in taken}

    def _member(self, name: str, by_name: dict[str, tarfile.TarInfo]) -> Member:
        info = by_name[name]
        for _ in range(MAX_LINKS):
            if not (info.issym() or info.islnk()):
                break
            # A symbolic link counts from its folder, a hard link from the top of the archive.
            base = name.rpartition("/")[0] if info.issym() else ""
            name = self._target(base, info)
            if name not in by_name:
                return Member(0, 0, 0, None, 0, "missing: a link to what the archive does not hold")
            info = by_name[name]
        problem = "" if info.isreg() and not info.issparse() else "not a regular file"
        return Member(info.offset_data, info.size, info.size, None, 0, problem)

    def _target(self, base: str, info: tarfile.TarInfo) -> str:
        target = os.path.normpath(os.path.join(base, info.linkname))  # noqa: PTH118 -- no real path
        if target.startswith(("/", "..")):
            raise DataError(
                f"The archive {self.path} is refused: its member {info.name[:200]!r} is a link to the outside. "
                "Get it from a source that you trust, or pack it anew with the files that links stand for."
            )
        return target

    def _unpack(self, member: Member) -> bytes:
        return self._bytes(member.offset, member.size)


def packed_tar(path: Path) -> str:
    """What to say of a compressed tar, whose pictures can only be read in one go."""
    return (
        f"{path} is a compressed tar, whose pictures can't be read one by one. Pictures hardly compress: unpack it to "
        "a plain .tar (gunzip, bunzip2, unxz), or pack it as .zip."
    )


def _text(error: Exception) -> str:
    """An error in one short line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = "".join(c if c.isprintable() else " " for c in str(error))
    return " ".join(text.split())[:80] or type(error).__name__
