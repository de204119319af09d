"""Guards from tables that the migrations do not make, and from numbers that do not fit."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import alembic.command
import alembic.config
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import BigInteger, Integer, text

from fleet_server.access import service as access
from fleet_server.access.permissions import ROLES
from fleet_server.audit import service as audit
from fleet_server.audit import verification
from fleet_server.database import MIGRATIONS, Database
from fleet_server.errors import StartError
from fleet_server.migrations.metadata import all_tables

# Whatever ends like this outgrows 32 bits: times since 1970, sizes, counters of devices.
WIDE = ("_ms", "_bytes", "epoch", "sequence", "birth", "boot", "generation")


def differences(database: Database) -> list[object]:
    with database.reading() as session:
        context = MigrationContext.configure(session.connection())
        return list(compare_metadata(context, all_tables()))


def test_tables_that_no_migration_makes(database: Database) -> None:
    assert differences(database) == [], "draft one: python -m fleet_server.migrations.draft"


@pytest.mark.postgres
def test_tables_that_no_migration_makes_on_postgresql(postgres_url: str) -> None:
    with closing(Database(postgres_url)) as database:
        database.migrate()
        assert differences(database) == []


def test_second_migration_of_the_same_database_loses_rows(database: Database) -> None:
    with database.transaction() as session:
        session.connection().execute(
            text("INSERT INTO cohort (fleet, name, selector, priority) VALUES ('f','c','{}',1)")
        )
    database.migrate()
    with database.reading() as session:
        assert session.connection().execute(text("SELECT count(*) FROM cohort")).scalar() == 1


def test_database_of_a_newer_version(database: Database) -> None:
    with database.transaction() as session:
        session.connection().execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StartError) as refused:
        database.migrate()
    assert refused.value.code == "unknown_migration"


def test_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "fleet.sqlite"
    path.write_bytes(b"not a database, whatever its name says" * 100)
    database = Database(f"sqlite:///{path}")
    with pytest.raises(StartError) as refused:
        database.migrate()
    assert refused.value.code == "no_database"
    database.close()


def test_number_that_outgrows_its_column() -> None:
    narrow = [
        f"{table.name}.{column.name}"
        for table in all_tables().tables.values()
        for column in table.columns
        if isinstance(column.type, Integer)
        and not isinstance(column.type, BigInteger)
        and column.name.endswith(WIDE)
    ]
    assert narrow == [], "use sa_type=BigInteger"


def upgrade(database: Database, revision: str) -> None:
    config = alembic.config.Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with database._writer.connect() as connection:
        config.attributes["connection"] = connection
        alembic.command.upgrade(config, revision)


def check_what_was_there_before(database: Database) -> None:
    """A database of the first version, with a token and an audit in it."""
    upgrade(database, "0001")
    token = "ef_" + "7" * 64
    with database.transaction() as session:
        connection = session.connection()
        connection.execute(
            text(
                "INSERT INTO api_token (token_hash, \"user\", created_ms) VALUES (:h, 'admin', 1)"
            ),
            {"h": access.hash_secret(token)},
        )
        for number in (1, 2, 5):
            connection.execute(
                text(
                    'INSERT INTO audit_entry (sequence, at_ms, "user", action, resource_type, '
                    "resource_name, outcome, correlation_id, detail) VALUES (:n, "
                    "1795000000000, 'ann', 'cohort.create', 'cohort', 'lab', 'done', 'c', :d)"
                ),
                {"n": number, "d": '{"note": "ü", "share": 0.1}'},
            )
    database.migrate()
    with database.reading() as session:
        user = access.authenticate(session, ROLES, token, fleet="home", now_ms=2)
        found = verification.verify(session, {}, fleet="home")
        entries = audit.newest(session)
    assert user.name == "admin" and user.permissions == ROLES["admin"]
    assert (found.records, found.findings) == (3, ())
    assert entries[0].detail == {"note": "ü", "share": 0.1}
    assert differences(database) == []


def test_tokens_and_audit_of_the_first_version(tmp_path: Path) -> None:
    with closing(Database(f"sqlite:///{tmp_path / 'old.sqlite'}")) as database:
        check_what_was_there_before(database)


@pytest.mark.postgres
def test_tokens_and_audit_of_the_first_version_on_postgresql(postgres_url: str) -> None:
    with closing(Database(postgres_url)) as database:
        check_what_was_there_before(database)
