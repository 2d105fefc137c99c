"""Pictures on the disk, by the SHA-256 of their bytes, a folder a case.

Cases share no file: what is in one can't be guessed from another, and deleting a case is deleting its folder. No part
of a path comes from a client: case ids and digests are made here, and are checked again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from marrowscope.errors import OutputError
from marrowscope.files import make_folder

_CASE = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_VIEW = re.compile(r"[a-z0-9-]{1,40}")


def digest(data: bytes) -> str:
    """SHA-256, 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


class Blobs:
    """The pictures of all cases, below one folder.

    ``pictures/`` holds what was uploaded; ``views/`` what can be made from it again (thumbnails, heat maps).
    """

    def __init__(self, root: Path) -> None:
        self.pictures = root / "pictures"
        self.views = root / "views"
        make_folder(self.pictures)
        make_folder(self.views)

    def put(self, case: str, pictures: Iterable[bytes]) -> None:
        """Keep pictures; when this returns they are on the disk, names and folders included.

        Raises:
            OutputError: The disk is full or can't be written.
        """
        folders: set[Path] = set()
        try:
            for data in pictures:
                path = self.path(case, digest(data))
                if path.exists():
                    continue
                if not path.parent.is_dir():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    folders |= {path.parent.parent, path.parent.parent.parent}
                _write(path, data, sync=True)
                folders.add(path.parent)
            for folder in folders:
                _sync(folder)
        except OSError as e:
            raise OutputError(f"Can't keep the pictures in {self.pictures}: {e.strerror or e}.") from e

    def get(self, case: str, sha256: str) -> bytes | None:
        """A picture's bytes; None where it is not there (its case was deleted)."""
        return _read(self.path(case, sha256))

    def put_view(self, case: str, sha256: str, kind: str, data: bytes) -> None:
        """Keep something made from a picture; lost is not lost, so it need not be on the disk at once."""
        path = self._view(case, sha256, kind)
        with contextlib.suppress(OSError):  # a full disk: the view is made anew next time
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, data, sync=False)

    def get_view(self, case: str, sha256: str, kind: str) -> bytes | None:
        return _read(self._view(case, sha256, kind))

    def drop(self, case: str) -> None:
        """Delete all of a case."""
        for root in (self.pictures, self.views):
            folder = root / _checked(_CASE, case)
            if folder.is_dir():
                shutil.rmtree(folder, ignore_errors=True)
                _sync(root)

    def drop_unknown(self, known: Iterable[str]) -> int:
        """Delete what a crash left of deleted cases; the number of folders."""
        keep = set(known)
        gone = {p.name for root in (self.pictures, self.views) for p in root.iterdir() if p.name not in keep}
        for name in gone:
            if _CASE.fullmatch(name):
                self.drop(name)
        return len(gone)

    def listed(self, case: str) -> Iterator[str]:
        """Digests of a case's pictures."""
        folder = self.pictures / _checked(_CASE, case)
        if folder.is_dir():
            yield from sorted(p.name for p in folder.glob("??/*") if _DIGEST.fullmatch(p.name))

    def path(self, case: str, sha256: str) -> Path:
        """Where a picture lies."""
        return self.pictures / _checked(_CASE, case) / _checked(_DIGEST, sha256)[:2] / sha256

    def _view(self, case: str, sha256: str, kind: str) -> Path:
        return self.views / _checked(_CASE, case) / f"{_checked(_DIGEST, sha256)}.{_checked(_VIEW, kind)}"


def _checked(pattern: re.Pattern[str], name: str) -> str:
    assert pattern.fullmatch(name), "names of files are made by the service alone"
    return name


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _write(path: Path, data: bytes, *, sync: bool) -> None:
    temporary = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with temporary.open("xb") as f:
            f.write(data)
            if sync:
                f.flush()
                os.fsync(f.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """Put the names in a folder on the disk, where the system has such a thing."""
    with contextlib.suppress(PermissionError):  # folders can't be opened on Windows
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
