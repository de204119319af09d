"""The database as JSON lines, and JSON lines as a database: every table, every row, every value.

Decides nothing about what rows mean. Tables are read as the database describes them, so a dump of
an older form is loaded into tables of that form, on either kind of database. Binary values are
base64; everything else is what JSON has.
"""

import base64
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from sqlalchemy import (
    Connection,
    LargeBinary,
    MetaData,
    Table,
    delete,
    func,
    insert,
    inspect,
    select,
    text,
)

from fleet_contract import codec
from fleet_server.backup.archive import refuse

VERSION_TABLE = "alembic_version"
CHUNK_BYTES = 4 * 1024 * 1024
"""A table is cut into parts of about this size, at the end of a row."""
ROWS = 500
"""Rows in memory at a time."""


class TableShape(msgspec.Struct, frozen=True):
    """A table of the dump: how its rows are to be read, and how many there are."""

    name: str
    columns: list[str]
    rows: int


def tables_of(connection: Connection) -> list[Table]:
    """Return the tables as the database describes them, those that others refer to first."""
    metadata = MetaData()
    metadata.reflect(connection)
    return [table for table in metadata.sorted_tables if table.name != VERSION_TABLE]


def is_empty(connection: Connection) -> bool:
    """Say whether there is no table at all."""
    return not inspect(connection).get_table_names()


def revision_of(connection: Connection) -> str:
    """Return which migration the database has reached, empty for none."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return ""
    return str(connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar() or "")


def shape_of(connection: Connection, table: Table) -> TableShape:
    """Return what the dump says about a table."""
    rows = connection.execute(select(func.count()).select_from(table)).scalar_one()
    # As plain strings: the database's own are of a class that knows about quotes.
    return TableShape(str(table.name), [str(column.name) for column in table.columns], rows)


def parts(connection: Connection, table: Table) -> Iterator[bytes]:
    """Yield a table's rows as JSON lines, in parts, in the order of its key."""
    binary = _binary(table)
    query = select(table).order_by(*table.primary_key.columns)
    found = connection.execute(query, execution_options={"yield_per": ROWS})
    lines: list[bytes] = []
    size = 0
    for row in found:
        values: list[Any] = list(row)
        for index in binary:
            if values[index] is not None:
                values[index] = base64.b64encode(values[index]).decode()
        # The order of keys in a JSON column is a part of its value.
        lines.append(msgspec.json.encode(values) + b"\n")
        size += len(lines[-1])
        if size >= CHUNK_BYTES:
            yield b"".join(lines)
            lines, size = [], 0
    if lines:
        yield b"".join(lines)


def clear(connection: Connection, tables: Iterable[Table]) -> None:
    """Delete what the migrations put into the tables of a new database."""
    for table in reversed(list(tables)):
        connection.execute(delete(table))


def load(connection: Connection, table: Table, shape: TableShape, lines: Iterable[bytes]) -> int:
    """Insert rows of a dump; returns how many.

    Raises:
        Invalid: if the lines are no rows of this table.
    """
    if sorted(shape.columns) != sorted(column.name for column in table.columns):
        raise refuse(f"the columns of {table.name} are not those of its version")
    ordered = [table.columns[name] for name in shape.columns]
    binary = {index for index, column in enumerate(ordered) if _is_binary(column.type)}
    count = 0
    batch: list[dict[str, Any]] = []
    for line in lines:
        batch.append(_row(line, shape, binary))
        count += 1
        if len(batch) >= ROWS:
            connection.execute(insert(table), batch)
            batch = []
    if batch:
        connection.execute(insert(table), batch)
    return count


def count_on(connection: Connection, tables: Iterable[Table]) -> None:
    """Let keys that the database counts up go on above those that were loaded."""
    if connection.dialect.name != "postgresql":
        return  # SQLite looks at the highest there is.
    for table in tables:
        for column in table.primary_key.columns:
            sequence = connection.execute(
                text("SELECT pg_get_serial_sequence(:table, :column)"),
                {"table": f'"{table.name}"', "column": column.name},
            ).scalar()
            if sequence is not None:
                highest = connection.execute(select(func.max(column))).scalar()
                connection.execute(
                    text("SELECT setval(CAST(:name AS regclass), :value, :called)"),
                    {"name": sequence, "value": highest or 1, "called": highest is not None},
                )


def _row(line: bytes, shape: TableShape, binary: set[int]) -> dict[str, Any]:
    try:
        values = msgspec.json.decode(line, type=codec.prepared(list[Any]))
        for index in binary:
            if values[index] is not None:
                values[index] = base64.b64decode(values[index], validate=True)
        return dict(zip(shape.columns, values, strict=True))
    except (msgspec.MsgspecError, ValueError, TypeError, IndexError, RecursionError) as error:
        raise refuse(f"a row of {shape.name} cannot be read ({type(error).__name__})") from error


def _binary(table: Table) -> list[int]:
    return [index for index, column in enumerate(table.columns) if _is_binary(column.type)]


def _is_binary(kind: object) -> bool:
    return isinstance(kind, LargeBinary)
