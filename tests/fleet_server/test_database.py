"""Guards from lost, half and interleaved writes, and from readers that write."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing

import pytest
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from fleet_server.database import Database
from fleet_server.errors import StartError
from fleet_server.settings import Settings

INSERT = text("INSERT INTO cohort (fleet, name, selector, priority) VALUES ('f', :name, '{}', 1)")
COUNT = text("SELECT count(*) FROM cohort")


def count(database: Database) -> int:
    with database.reading() as session:
        return int(session.connection().execute(COUNT).scalar_one())


def raise_after_insert(database: Database) -> None:
    with database.transaction() as session:
        session.connection().execute(INSERT, {"name": "half"})
        raise RuntimeError("killed")


def increment_many(database: Database, times: int) -> None:
    for _ in range(times):
        with database.transaction() as session:
            connection = session.connection()
            # FOR UPDATE is what PostgreSQL needs here; SQLite's writers queue up by themselves.
            lock = " FOR UPDATE" if database.kind == "postgresql" else ""
            found = connection.execute(
                text(f"SELECT priority FROM cohort WHERE name = 'counter'{lock}")
            ).scalar_one()
            connection.execute(
                text("UPDATE cohort SET priority = :p WHERE name = 'counter'"), {"p": found + 1}
            )


def check_parallel_writers(database: Database) -> None:
    with database.transaction() as session:
        session.connection().execute(INSERT, {"name": "counter"})
    threads = [threading.Thread(target=increment_many, args=(database, 20)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.reading() as session:
        found = session.connection().execute(text("SELECT priority FROM cohort")).scalar_one()
    assert found == 1 + 4 * 20


def test_transaction_that_fails_leaves_half_behind(database: Database) -> None:
    with pytest.raises(RuntimeError):
        raise_after_insert(database)
    assert count(database) == 0
    # The writers' lock went with it.
    with database.transaction() as session:
        session.connection().execute(INSERT, {"name": "whole"})
    assert count(database) == 1


def test_two_writers_decide_on_the_same_state(database: Database) -> None:
    check_parallel_writers(database)


def write_in_reading(database: Database) -> None:
    with database.reading() as session:
        session.connection().execute(INSERT, {"name": "sneaked"})
        session.commit()


def test_reader_that_writes(database: Database) -> None:
    with pytest.raises(SQLAlchemyError):
        write_in_reading(database)
    assert count(database) == 0


def test_reader_sees_half_a_transaction(database: Database) -> None:
    with database.transaction() as session:
        session.connection().execute(INSERT, {"name": "unfinished"})
        assert count(database) == 0
    assert count(database) == 1


def test_power_cut_after_the_commit(database: Database) -> None:
    with database.transaction() as session:
        connection = session.connection()
        assert connection.execute(text("PRAGMA synchronous")).scalar_one() == 2
        assert connection.execute(text("PRAGMA journal_mode")).scalar_one() == "wal"
        assert connection.execute(text("PRAGMA foreign_keys")).scalar_one() == 1


@pytest.mark.parametrize(
    "url", ["", "nonsense", "sqlite://", "sqlite:///:memory:", "mysql://u@h/d"]
)
def test_database_that_cannot_be_used(url: str) -> None:
    with pytest.raises((StartError, ImportError)) as refused:
        Database(url)
    assert isinstance(refused.value, StartError)


def test_password_in_the_error_of_a_bad_url() -> None:
    with pytest.raises(StartError) as refused:
        Database("mysql://operator:hunter2@host/name")
    assert "hunter2" not in f"{refused.value} {refused.value.advice}"


def test_database_that_is_gone(settings_for: Callable[[str], Settings]) -> None:
    settings = settings_for("postgresql+psycopg://nobody@127.0.0.1:1/none")
    database = Database(settings.database)
    assert not database.is_ready()
    with pytest.raises(StartError) as refused:
        database.migrate()
    assert refused.value.code == "no_database"
    database.close()


@pytest.fixture
def settings_for() -> Callable[[str], Settings]:
    pytest.importorskip("psycopg")
    return lambda url: Settings(database_url=url)


@pytest.mark.postgres
def test_postgresql_keeps_the_same_promises(postgres_url: str) -> None:
    with closing(Database(postgres_url)) as database:
        database.migrate()
        with pytest.raises(RuntimeError):
            raise_after_insert(database)
        with pytest.raises(SQLAlchemyError):
            write_in_reading(database)
        assert count(database) == 0
        check_parallel_writers(database)
