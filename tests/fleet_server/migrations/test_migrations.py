"""Guards from tables that the migrations do not make, and from numbers that do not fit."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import BigInteger, Integer, text

from fleet_server.database import Database
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
