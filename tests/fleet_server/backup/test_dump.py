"""Guards from a row that comes back as another one: any values, in every table."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Table, insert, select

from fleet_server.backup import dump
from fleet_server.database import Database

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
json_value = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(-1e9, 1e9) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "BLOB": st.binary(max_size=300),
    "JSON": st.dictionaries(text, json_value, max_size=3) | st.lists(json_value, max_size=3),
    "BOOLEAN": st.booleans(),
    "INTEGER": st.integers(-(2**31), 2**31 - 1),
    "BIGINT": st.integers(-(2**63), 2**63 - 1),
    "VARCHAR": text,
}


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    path: Path = tmp_path_factory.mktemp("dump") / "fleet.sqlite"
    with closing(Database(f"sqlite:///{path}")) as database:
        database.migrate()
        yield database


def row_of(draw: Any, table: Table) -> dict[str, Any]:
    row = {}
    for column in table.columns:
        strategy = VALUES[type(column.type).__name__]
        row[column.name] = draw(st.none() | strategy if column.nullable else strategy)
    return row


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_any_row_of_any_table_comes_back_as_it_was(empty: Database, data: st.DataObject) -> None:
    with empty.transaction() as session:
        connection = session.connection()
        table = data.draw(st.sampled_from(dump.tables_of(connection)), label="table")
        row = row_of(data.draw, table)
        connection.execute(insert(table).values(row))
        before = connection.execute(select(table)).all()
        shape = dump.shape_of(connection, table)
        lines = b"".join(dump.parts(connection, table)).splitlines()
        dump.clear(connection, [table])
        assert dump.load(connection, table, shape, lines) == shape.rows == len(before)
        assert connection.execute(select(table)).all() == before
        dump.clear(connection, [table])


def test_table_is_cut_into_parts_between_rows(
    empty: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dump, "CHUNK_BYTES", 100)
    with empty.transaction() as session:
        connection = session.connection()
        table = next(item for item in dump.tables_of(connection) if item.name == "cohort")
        rows = [
            {"fleet": "home", "name": f"c{n:03}", "selector": {"a": "b" * n}, "priority": n}
            for n in range(40)
        ]
        connection.execute(insert(table), rows)
        parts = list(dump.parts(connection, table))
        assert len(parts) > 5
        assert all(part.endswith(b"\n") for part in parts)
        assert sum(part.count(b"\n") for part in parts) == 40
        dump.clear(connection, [table])
