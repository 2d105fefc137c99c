"""Opening the database, bringing it up to date, and transactions.

SQLite runs in WAL mode with ``synchronous=FULL``: a transaction that was acknowledged is on the disk, whatever happens
to the process or the power. Writers take turns within the process, and take the database's write lock at once, so that
no transaction fails half-way because another one wrote first.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.orm import Session

from marrowscope.errors import MissingExtraError, ServiceError

_BUSY_SECONDS = 30
_WRITE = "marrowscope_write"
MIGRATIONS = Path(__file__).parent / "migrations"


def now() -> str:
    """This moment, ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


class Database:
    """A database, and its transactions."""

    def __init__(self, url: str) -> None:
        """Open it; `migrate` makes the tables.

        Args:
            url: SQLAlchemy URL of a SQLite or PostgreSQL database.

        Raises:
            ServiceError: No such kind of database.
            MissingExtraError: The driver for PostgreSQL is not installed.
        """
        self.engine = _open(url)
        self.sqlite = self.engine.dialect.name == "sqlite"
        self._turn = threading.Lock()

    def migrate(self) -> None:
        """Make the tables, or bring those of an earlier version up to date.

        Raises:
            ServiceError: The database can't be reached, or a later version of the program wrote it.
        """
        from alembic import command
        from alembic.config import Config
        from alembic.util import CommandError

        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        try:
            with self._turn, self._begin(write=True) as connection:
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
        except (CommandError, SQLAlchemyError) as e:
            raise ServiceError(
                f"The database {self.engine.url.render_as_string()} can't be opened or brought up to date: "
                f"{_first_line(e)}. If a later version of marrowscope wrote it, start that version."
            ) from e

    @contextlib.contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that sees one state of the database and changes nothing."""
        with self._begin(write=False) as connection, Session(connection, expire_on_commit=False) as session:
            yield session

    @contextlib.contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction; when the block ends well, it is on the disk, and otherwise nothing of it happened."""
        turn = self._turn if self.sqlite else contextlib.nullcontext()
        with turn, self._begin(write=True) as connection, Session(connection, expire_on_commit=False) as session:
            yield session
            session.flush()

    def answers(self) -> bool:
        """Whether the database can be used at this moment."""
        try:
            with self.engine.connect() as connection:
                connection.execute(text("SELECT 1"))
        except SQLAlchemyError:
            return False
        return True

    def close(self) -> None:
        self.engine.dispose()

    @contextlib.contextmanager
    def _begin(self, *, write: bool) -> Iterator[Any]:
        with self.engine.connect() as plain:
            options: dict[str, Any] = {_WRITE: write}
            if not self.sqlite and not write:
                options |= {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
            connection = plain.execution_options(**options)
            with connection.begin():
                yield connection


def _open(url: str) -> Engine:
    try:
        parsed = make_url(url)
        kind = parsed.get_backend_name()
        if kind == "postgresql" and "+" not in parsed.drivername:
            parsed = parsed.set(drivername="postgresql+psycopg")
        if kind not in {"sqlite", "postgresql"}:
            raise ServiceError(f"Databases of the kind {kind!r} are not supported: SQLite and PostgreSQL are.")
        if kind == "postgresql":
            return create_engine(parsed, pool_pre_ping=True, pool_size=10, max_overflow=10)
        engine = create_engine(parsed, connect_args={"timeout": _BUSY_SECONDS}, pool_size=10, max_overflow=40)
    except (ArgumentError, NoSuchModuleError) as e:
        raise ServiceError(f"Not the URL of a database: {e}. An example: postgresql+psycopg://user@host/name") from None
    except ModuleNotFoundError as e:
        raise MissingExtraError(str(e.name), "postgres", "Keeping cases in PostgreSQL") from None
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _: object) -> None:
    connection.isolation_level = None  # or the driver would open transactions by its own rules
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"busy_timeout={_BUSY_SECONDS * 1000}"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Any) -> None:
    write = connection.get_execution_options().get(_WRITE, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
