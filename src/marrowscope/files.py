"""Whole files or none: outputs are written beside their place and renamed into it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from marrowscope.errors import OutputError

# File names that are not valid UTF-8 exist on disks; this carries them through our text files unharmed.
UTF8 = "utf-8"
UNDECODABLE = "surrogateescape"


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path in the folder of `path`, and rename it to `path` when the block ends well.

    The data is flushed to the disk before the rename, so that a crash leaves the old file or the new one.

    Raises:
        OutputError: The folder can't be made or written, or the disk is full. `path` is then as it was before.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        if path.exists() and not path.is_file():
            raise OutputError(f"Can't write {path}: it is a folder or a device. Give a file name.")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name[:80]}.{secrets.token_hex(6)}.part")
        # O_EXCL: never the file of another process; mode 0666 less the umask, as open() would give.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        yield temporary
        with temporary.open("rb") as f:
            os.fsync(f.fileno())
        temporary.replace(path)
    except OSError as e:
        raise OutputError(
            f"Can't write {path}: {e.strerror or e}. Choose a folder that can be written and has free space."
        ) from e
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_open(path: Path) -> Iterator[IO[str]]:
    """Open `path` for writing text (UTF-8, line ends as written); it appears whole or not at all."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding=UTF8, errors=UNDECODABLE) as f:
        yield f


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with atomic_open(path) as f:
        f.write(text)


def csv_line(row: Sequence[str]) -> str:
    """One line of CSV. The `csv` module of Python 3.11 forgets to quote a carriage return in a name."""
    cells = ('"' + cell.replace('"', '""') + '"' if any(c in cell for c in ',"\r\n') else cell for cell in row)
    return ",".join(cells) + "\n"


def make_folder(path: Path) -> None:
    """Make a folder and its parents.

    Raises:
        OutputError: It can't be made or written in.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as e:
        raise OutputError(
            f"Can't write in the folder {path}: {e.strerror or e}. "
            "Choose a folder that can be written and has free space."
        ) from e


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits."""
    with Path(path).open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
