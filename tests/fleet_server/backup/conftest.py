"""A data folder with something of everything in it, and backups of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, insert, select

from fleet_contract.manifest import FileRef
from fleet_contract.trust.keyset import KEYSET_PATH
from fleet_server.access import service as access
from fleet_server.audit import service as audit
from fleet_server.backup import dump
from fleet_server.backup.contents import Summary
from fleet_server.backup.making import make_backup
from fleet_server.clock import Clock
from fleet_server.database import Database
from fleet_server.devices import service as devices
from fleet_server.devices import stopping
from fleet_server.releases.store import Store
from fleet_server.trust.catalogue.opening import open_catalogue
from fleet_server.trust.keyring import open_keyring

FLEET = "home"
Contents = dict[str, list[Any]]
ARTIFACT = b"weights " * 50_000


def database_of(folder: Path) -> str:
    return f"sqlite:///{folder / 'fleet.sqlite'}"


def contents_of(url: str) -> Contents:
    """Table → its rows, of a database."""
    with closing(Database(url)) as database, database.reading() as session:
        return _contents(session.connection())


def _contents(connection: Connection) -> Contents:
    return {
        table.name: [
            tuple(row)
            for row in connection.execute(select(table).order_by(*table.primary_key.columns))
        ]
        for table in dump.tables_of(connection)
    }


@pytest.fixture
def folder(tmp_path: Path, clock: Clock) -> Path:
    """The data folder of a server that has lived a little."""
    folder = tmp_path / "data"
    folder.mkdir(mode=0o700)
    catalogue = open_catalogue(
        folder / "trust", may_make=True, random_bytes=clock.random_bytes, now_ms=clock.now_ms
    )
    keyring = open_keyring(folder / "keys", fleet=FLEET, random_bytes=clock.random_bytes)
    catalogue.publish_document(KEYSET_PATH, keyring.keyset_bytes)
    store = Store(folder / "store")
    file = store.put_artifact("digits", [ARTIFACT])
    manifest = store.put_manifest("digits", b"{}")
    catalogue.publish("digits", FileRef(manifest.digest, manifest.size_bytes), [file])
    (folder / "instance").write_text("0123456789abcdef\n")
    (folder / "pki").mkdir()
    (folder / "pki" / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\n")
    (folder / "pki" / "ca.key").write_text("-----BEGIN PRIVATE KEY-----\n")
    (folder / "broker").mkdir()
    (folder / "broker" / "mosquitto.conf").write_text("made anew at each start")
    with closing(Database(database_of(folder))) as database:
        database.migrate()
        with database.transaction() as session:
            access.ensure_admin_token(
                session, folder, random_bytes=clock.random_bytes, now_ms=clock.now_ms()
            )
            devices.ensure_default_cohort(session, FLEET)
            stopping.ensure_stop(session, keyring, now_ms=clock.now_ms())
            audit.record(
                session,
                action="test",
                resource_type="test",
                resource_name="é\u2028\n",
                outcome="done",
                user="ann",
                correlation_id="c",
                detail={"b": 1, "a": None},
                now_ms=clock.now_ms(),
            )
    return folder


@pytest.fixture
def back_up(tmp_path: Path, folder: Path, clock: Clock) -> Callable[..., Summary]:
    """``back_up(target, **options)``"""

    def make(target: Path = tmp_path / "backup.tar", url: str = "", **options: Any) -> Summary:
        with closing(Database(url or database_of(folder))) as database:
            return make_backup(target, folder, database, now_ms=clock.now_ms(), **options)

    return make


@pytest.fixture
def backup_file(tmp_path: Path, back_up: Callable[..., Summary]) -> Path:
    back_up(tmp_path / "backup.tar")
    return tmp_path / "backup.tar"


@pytest.fixture
def full_database(folder: Path) -> Iterator[str]:
    """The URL of the folder's database, with a row of odd values in every table."""
    with closing(Database(database_of(folder))) as database, database.transaction() as session:
        connection = session.connection()
        for table in dump.tables_of(connection):
            if connection.execute(select(table)).first() is None:
                connection.execute(insert(table).values(odd_row(table)))
    yield database_of(folder)


def odd_row(table: Any) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for column in table.columns:
        kind = type(column.type).__name__
        if column.nullable:
            row[column.name] = None
        elif "BLOB" in kind or "BYTEA" in kind:
            row[column.name] = bytes(range(256))
        elif kind == "JSON":
            row[column.name] = {"z": [1, 2.5, None, "é"], "a": {}}
        elif kind == "BOOLEAN":
            row[column.name] = True
        elif kind == "INTEGER":
            row[column.name] = 2**31 - 1
        elif kind == "BIGINT":
            row[column.name] = 2**63 - 1
        else:
            row[column.name] = json.dumps("\u2028é\"'\\")[: column.type.length or 20]
    return row
