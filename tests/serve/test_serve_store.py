"""Databases, migrations, the log that only grows, backup and restore; on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from postgres import server
from rooms import MakeRoom, parts, picture
from sqlalchemy import text
from sqlalchemy.exc import DatabaseError

from marrowscope.errors import ServiceError
from marrowscope.serve.service import open_database
from marrowscope.serve.settings import Settings
from marrowscope.serve.store.backup import back_up, restore
from marrowscope.serve.store.blobs import Blobs
from marrowscope.serve.store.database import Database
from marrowscope.serve.store.tables import Base


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with server() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database of each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'db.sqlite'}"
        return
    address = request.getfixturevalue("postgres")
    yield address
    database = Database(address)
    with database.engine.begin() as c:
        c.execute(text("DROP SCHEMA public CASCADE"))
        c.execute(text("CREATE SCHEMA public"))
    database.close()


def test_migrations_make_the_tables_of_this_program(url: str) -> None:
    database = Database(url)
    database.migrate()
    database.migrate()
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
    database.close()


def test_a_whole_case_and_its_log_that_only_grows(url: str, make_room: MakeRoom) -> None:
    room = make_room(database=url, tokens={"anna": "reviewer", "root": "admin"})
    anna, root = (room.client(room.tokens[n]) for n in ("anna", "root"))
    case = room.case(anna, [picture(i) for i in range(12)])
    path = f"/v1/cases/{case}"
    assert anna.patch(f"{path}/cells/3", json={"version": 1, "label": "BLA"}).status_code == 200
    assert anna.patch(f"{path}/cells/3", json={"version": 1, "label": "LYT"}).status_code == 409
    assert anna.post(f"{path}/undo").json()["cells"][0]["label"] is None
    assert anna.patch(f"{path}/cells/4", json={"version": 1, "accept": True}).status_code == 200
    cells = anna.get(f"{path}/cells", params={"sort": "class", "reviewed": False}).json()
    assert cells["total"] == 11
    for change in ("UPDATE events SET by = 'x'", "DELETE FROM events"):
        with pytest.raises(DatabaseError, match="only grow"), room.service.database.write() as session:
            session.execute(text(change))
    seen = anna.get(f"{path}/differential").json()
    signed = anna.post(f"{path}/sign", json={"version": seen["case_version"]}).json()
    assert signed["signatures"][0]["summary"] == seen
    assert anna.get(f"{path}/export/json").status_code == 200
    assert root.delete(path).status_code == 204
    actions = [e["action"] for e in root.get("/v1/audit").json()["events"] if e["case_id"] == case]
    assert actions == "create upload label undo accept sign export delete".split()


def test_a_backup_brings_everything_back_on_either_database(url: str, make_room: MakeRoom, tmp_path: Path) -> None:
    room = make_room(tokens={"anna": "reviewer", "root": "admin"})
    anna = room.client(room.tokens["anna"])
    case = room.case(anna, [picture(i) for i in range(7)])
    anna.patch(f"/v1/cases/{case}/cells/2", json={"version": 1, "label": "EOS"})
    before = [anna.get(f"/v1/cases/{case}{p}").json() for p in ("", "/cells", "/history", "/differential")]
    archive = tmp_path / "backup.tar"
    counts = back_up(room.service.database, room.service.blobs, archive)
    assert (counts["cases"], counts["cells"], counts["pictures"]) == (1, 7, 7)
    assert archive.stat().st_mode & 0o077 == 0
    room.service.close()

    other = Settings(data=tmp_path / "other", models=(), database=url)
    database, blobs = open_database(other), Blobs(other.data)
    assert restore(database, blobs, archive) == counts
    with pytest.raises(ServiceError, match="not empty"):
        restore(database, blobs, archive)
    database.close()
    back = make_room(data=other.data, database=url)
    client = back.client(room.tokens["anna"])
    after = [client.get(f"/v1/cases/{case}{p}").json() for p in ("", "/cells", "/history", "/differential")]
    assert after == before
    for number in range(1, 8):
        assert client.get(f"/v1/cases/{case}/cells/{number}/picture").status_code == 200
    assert client.post(f"/v1/cases/{case}/cells", files=parts([picture(99)])).json()["results"][0]["number"] == 8
    assert client.post(f"/v1/cases/{case}/undo").status_code == 200


def _changed(archive: Path, name: str, data: bytes | None) -> Path:
    """The archive with one member changed or, with None, left out."""
    out = archive.with_name("changed.tar")
    with tarfile.open(archive) as old, tarfile.open(out, "w") as new:
        for info in old:
            content = old.extractfile(info).read()  # type: ignore[union-attr]
            if info.name.startswith(name):
                if data is None:
                    continue
                content = data
            info.size = len(content)
            new.addfile(info, io.BytesIO(content))
    return out


@pytest.mark.parametrize(
    ("name", "data", "hint"),
    [
        ("pictures/", b"changed", "damaged"),
        ("pictures/", None, "not whole"),
        ("tables/cells", b"", "not whole"),
        ("tables/cells", b"{", "can't be read"),
        ("manifest", b'{"format": "other"}', "reads marrowscope backup 1"),
        ("manifest", None, "can't be read"),
    ],
)
def test_a_damaged_backup_is_refused_and_nothing_of_it_kept(
    make_room: MakeRoom, tmp_path: Path, name: str, data: bytes | None, hint: str
) -> None:
    room = make_room()
    room.case(room.client(), [picture(0)])
    archive = tmp_path / "backup.tar"
    back_up(room.service.database, room.service.blobs, archive)
    other = Settings(data=tmp_path / "other", models=())
    database = open_database(other)
    with pytest.raises(ServiceError, match=hint):
        restore(database, Blobs(other.data), _changed(archive, name, data))
    with database.read() as session:
        assert session.scalar(text("SELECT count(*) FROM cases")) == 0
    database.close()


@pytest.mark.parametrize(
    ("address", "hint"),
    [("mysql://x/y", "not supported"), ("nonsense", "Not the URL"), ("sqlite:////no/such/x", "opened")],
)
def test_databases_that_can_not_be_used_are_refused(address: str, hint: str) -> None:
    with pytest.raises(ServiceError, match=hint):
        Database(address).migrate()


def test_a_database_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'db.sqlite'}")
    database.migrate()
    with database.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ServiceError, match="later version"):
        database.migrate()
    database.close()
