"""One archive of everything, and back: the same for SQLite and PostgreSQL, so it moves cases from one to the other.

The archive is a tar of ``manifest.json`` (format, schema, number of rows), ``tables/NAME.jsonl`` and
``pictures/CASE/SHA256``. It is made while the service runs: the tables are read in one transaction, so they show one
moment; pictures are only ever added, and those of a case that is deleted meanwhile are left out with a note.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from sqlalchemy import Table, func, insert, select, text
from sqlalchemy.orm import Session

from marrowscope import __version__
from marrowscope.errors import ServiceError
from marrowscope.files import atomic_path
from marrowscope.serve.store.blobs import Blobs, digest
from marrowscope.serve.store.casework import PROGRAM_VERSION
from marrowscope.serve.store.database import Database, now
from marrowscope.serve.store.history import PROGRAM, log
from marrowscope.serve.store.tables import Base

FORMAT = "marrowscope backup 1"
_CHUNK = 500
_TABLES: list[Table] = [t for t in Base.metadata.sorted_tables if t.name != "logins"]


def back_up(database: Database, blobs: Blobs, output: Path) -> dict[str, int]:
    """Write the archive; it appears whole or not at all.

    Returns:
        Rows by table, and ``pictures``.

    Raises:
        OutputError: It can't be written.
    """
    counts: dict[str, int] = {"pictures": 0}
    with database.write() as session:
        log(session, PROGRAM, "backup")
    with atomic_path(output) as temporary, tarfile.open(temporary, "w") as tar, database.read() as session:
        temporary.chmod(0o600)
        pictures: list[tuple[str, str]] = []
        for table in _TABLES:
            lines = [json.dumps(dict(row._mapping)) + "\n" for row in session.execute(select(table))]
            counts[table.name] = len(lines)
            _add(tar, f"tables/{table.name}.jsonl", "".join(lines).encode())
        cells = Base.metadata.tables["cells"]
        pictures = [(c, s) for c, s in session.execute(select(cells.c.case_id, cells.c.sha256))]
        for case, sha256 in pictures:
            data = blobs.get(case, sha256)
            if data is not None:
                _add(tar, f"pictures/{case}/{sha256}", data)
                counts["pictures"] += 1
        schema = session.scalar(text("SELECT version_num FROM alembic_version"))
        manifest = {"format": FORMAT, "schema": schema, "program": PROGRAM_VERSION, "at": now(), "counts": counts}
        _add(tar, "manifest.json", json.dumps(manifest, indent=2).encode())
    return counts


def restore(database: Database, blobs: Blobs, archive: Path) -> dict[str, int]:
    """Read an archive into an empty store. Every picture is checked against its SHA-256.

    Returns:
        As `back_up`.

    Raises:
        ServiceError: The store is not empty, or the archive is not whole, not of this version, or damaged.
        OutputError: The disk is full.
    """
    try:
        with tarfile.open(archive, "r:") as tar, database.write() as session:
            _check_empty(session)
            manifest = _manifest(tar, session, archive)
            counts = {"pictures": 0}
            for table in _TABLES:
                counts[table.name] = _insert(session, table, _member(tar, f"tables/{table.name}.jsonl", archive))
            session.flush()
            cells = Base.metadata.tables["cells"]
            known = {(c, s) for c, s in session.execute(select(cells.c.case_id, cells.c.sha256))}
            counts["pictures"] = _pictures(tar, blobs, known, archive)
            if counts != manifest["counts"]:
                raise ServiceError(f"{archive} is not whole: it should hold {manifest['counts']}, and holds {counts}.")
            _restart_numbers(database, session)
            log(session, PROGRAM, "restore", after={"from": manifest["at"]})
    except (tarfile.TarError, OSError, json.JSONDecodeError, KeyError, TypeError) as e:
        raise ServiceError(f"{archive} can't be read as a backup: {e}.") from e
    return counts


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), 0o600
    tar.addfile(info, io.BytesIO(data))


def _check_empty(session: Session) -> None:
    for name in ("cases", "tokens"):
        if session.scalar(select(func.count()).select_from(Base.metadata.tables[name])):
            raise ServiceError(
                f"The store to restore into is not empty (it has {name}). Give an empty folder with --data, or an "
                "empty database with --database."
            )


def _manifest(tar: tarfile.TarFile, session: Session, archive: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads(_member(tar, "manifest.json", archive).read())
    schema = session.scalar(text("SELECT version_num FROM alembic_version"))
    if manifest.get("format") != FORMAT or manifest.get("schema") != schema:
        raise ServiceError(
            f"{archive} is a {manifest.get('format')} with schema {manifest.get('schema')} of "
            f"{manifest.get('program')}; marrowscope {__version__} reads {FORMAT} with schema {schema}. Restore it "
            "with the version that made it, then upgrade."
        )
    return manifest


def _member(tar: tarfile.TarFile, name: str, archive: Path) -> IO[bytes]:
    file = tar.extractfile(name)
    if file is None:
        raise ServiceError(f"{archive} is not a backup: {name} in it is no file.")
    return file


def _insert(session: Session, table: Table, lines: IO[bytes]) -> int:
    n = 0
    chunk: list[dict[str, Any]] = []
    for line in lines:
        chunk.append(json.loads(line))
        n += 1
        if len(chunk) == _CHUNK:
            session.execute(insert(table), chunk)
            chunk = []
    if chunk:
        session.execute(insert(table), chunk)
    return n


def _pictures(tar: tarfile.TarFile, blobs: Blobs, known: set[tuple[str, str]], archive: Path) -> int:
    """Keep the pictures that the tables name; names in the archive are compared with these, and never used as paths."""

    def checked() -> Iterator[tuple[str, bytes]]:
        for info in tar:
            parts = info.name.split("/")
            if len(parts) != 3 or parts[0] != "pictures" or (parts[1], parts[2]) not in known:
                continue
            file = tar.extractfile(info)
            data = file.read() if file is not None else b""
            if digest(data) != parts[2]:
                raise ServiceError(f"{archive} is damaged: the picture {parts[2]} is not what it was.")
            yield parts[1], data

    n = 0
    for case, data in checked():
        blobs.put(case, [data])
        n += 1
    return n


def _restart_numbers(database: Database, session: Session) -> None:
    """PostgreSQL counts events by itself and has not seen the restored ones; SQLite looks at the table."""
    if not database.sqlite:
        session.execute(
            text(
                "SELECT setval(pg_get_serial_sequence('events', 'id'), (SELECT coalesce(max(id), 1) FROM events), "
                "(SELECT count(*) > 0 FROM events))"
            )
        )
