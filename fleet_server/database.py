"""The database: one way to write, one way to read, and the only commit in the program.

SQLite and PostgreSQL behave alike here: writers of SQLite queue up for one lock before they read
anything, so that a decision is never made on a state that somebody else is changing. Which tables
there are is the domains' and the migrations' matter.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import alembic.command
import alembic.config
import alembic.util
from sqlalchemy import BigInteger, Engine, Integer, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlmodel import Session

from fleet_server.errors import StartError, Unavailable

LOCK_WAIT_S = 30
MIGRATIONS = Path(__file__).parent / "migrations"

# SQLModel turns int into 32 bits on PostgreSQL: times, epochs, sequences and sizes need these.
Big = BigInteger
# SQLite counts up only an INTEGER primary key by itself.
Counter = BigInteger().with_variant(Integer, "sqlite")


class Database:
    """A database, by SQLAlchemy URL: ``sqlite:///file`` or ``postgresql+psycopg://…``.

    Args:
        url: of the database.
        info: what each session carries along for those who write through it (``Session.info``).

    Raises:
        StartError: from the constructor, if the URL is neither.
    """

    def __init__(self, url: str, info: Mapping[str, str] | None = None) -> None:
        self._info = dict(info or {})
        try:
            self.url = make_url(url)
        except ArgumentError as error:
            # The URL may hold a password; do not repeat it.
            raise _bad_url("it is not a database URL") from error
        if self.url.drivername == "postgresql":
            self.url = self.url.set(drivername="postgresql+psycopg")
        self.kind = self.url.get_backend_name()
        # SQLite's own waiting is polling without fairness; within the process a lock is exact.
        self._writing = threading.Lock() if self.kind == "sqlite" else None
        if self.kind == "sqlite":
            if self.url.database in {None, "", ":memory:"}:
                raise _bad_url("SQLite needs a file")
            self._writer = _sqlite(self.url, "BEGIN IMMEDIATE", query_only=False)
            self._reader = _sqlite(self.url, "BEGIN", query_only=True)
        elif self.kind == "postgresql":
            self._writer = create_engine(self.url, pool_pre_ping=True)
            # One snapshot for all that a reader asks.
            self._reader = self._writer.execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )
        else:
            raise _bad_url(f"{self.kind} is not supported")

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """A session that writes; commits at the end of the block, or leaves nothing behind.

        Must not be nested.

        Raises:
            Unavailable: if other writers do not finish in 30 seconds.
        """
        if self._writing is not None and not self._writing.acquire(timeout=LOCK_WAIT_S):
            raise Unavailable("database_busy", "The database is busy.", "Try again in a moment.")
        try:
            with Session(self._writer, expire_on_commit=False, info=self._info) as session:
                yield session
                session.commit()
        finally:
            if self._writing is not None:
                self._writing.release()

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session that sees one state of the database and cannot change it."""
        with Session(self._reader, expire_on_commit=False) as session:
            yield session

    def migrate(self, revision: str = "head") -> None:
        """Bring the tables to the form that this version of the program expects.

        Args:
            revision: stop at this migration, for rows of an older version.

        Raises:
            StartError: if the database cannot be reached or was written by a newer version.
        """
        config = alembic.config.Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        try:
            with self._writer.connect() as connection:
                config.attributes["connection"] = connection
                alembic.command.upgrade(config, revision)
        except alembic.util.CommandError as error:
            raise StartError(
                "unknown_migration",
                f"The database was written by another version: {error}",
                "Run the version that wrote it, or a newer one; older ones cannot read it.",
            ) from error
        except SQLAlchemyError as error:
            raise StartError(
                "no_database",
                f"The database cannot be used: {type(error).__name__}.",
                "Check that it runs, that database_url is right and that its user may write.",
            ) from error

    def is_ready(self) -> bool:
        """Say whether the database answers."""
        try:
            with self.reading() as session:
                session.connection().execute(text("SELECT 1"))
        except SQLAlchemyError:
            return False
        return True

    def close(self) -> None:
        """Close every connection."""
        self._reader.dispose()
        self._writer.dispose()


def _sqlite(url: Any, begin: str, *, query_only: bool) -> Engine:
    engine = create_engine(url, connect_args={"timeout": LOCK_WAIT_S})

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: Any) -> None:
        # The driver would begin transactions at a moment of its own choice.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        # A decision that was announced must survive a power cut.
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.execute(f"PRAGMA query_only={'ON' if query_only else 'OFF'}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def start(connection: Any) -> None:
        connection.exec_driver_sql(begin)

    return engine


def _bad_url(why: str) -> StartError:
    return StartError(
        "bad_setting",
        f"The setting database_url cannot be used: {why}.",
        "Write sqlite:///path/to/file or postgresql+psycopg://user@host/name.",
    )
