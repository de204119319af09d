"""What belongs into a backup, and under which names: the table of the archive's rooms.

Left out: the log, the lock, what the broker keeps, and uploads that were not staged yet. They are
made anew or sent again.
"""

import re
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta

from fleet_server.backup.dump import TableShape
from fleet_server.data_folder import BROKER, DEVICES, TOKEN_FILE
from fleet_server.instance import ID_FILE

DESCRIPTION = "backup.json"
"""The first member."""
DESCRIPTION_BYTES = 1024 * 1024
FORMAT = 1
DATABASE = "database"
FILES = "files"
"""Below it, names are those in the data folder."""

KEY_FOLDERS = ("keys", "trust/keys")
"""All in them is secret, or useless without what is."""
PKI = "pki"
FOLDERS = ("keys", PKI, "store", "trust")
SINGLE_FILES = (ID_FILE, BROKER, DEVICES, TOKEN_FILE)
SECRET_FILES = (TOKEN_FILE,)
UNFINISHED = "store/fresh"
METADATA = "trust/metadata"
"""Copied apart: what the timestamp leads to, as of one moment."""

_PART = re.compile(r"database/(?P<table>[a-z][a-z0-9_]{0,62})/[0-9]{6}\.jsonl\Z")
_FILE = re.compile(rf"files/(?P<path>(?:{'|'.join(FOLDERS)})/.+|{'|'.join(SINGLE_FILES)})\Z")


class Description(msgspec.Struct, frozen=True):
    """What a backup says about itself. ``made_ms`` is the server's time."""

    format: int
    fleet: str
    edgefleet: str
    revision: Annotated[str, Meta(pattern=r"^[0-9]{4}\Z")]
    made_ms: int
    keys: bool
    tables: list[TableShape]


@dataclass(frozen=True, slots=True)
class Summary:
    """A backup that was made or checked."""

    description: Description
    files: int
    size_bytes: int


def part_name(table: str, number: int) -> str:
    """Return the member that holds a part of a table."""
    return f"{DATABASE}/{table}/{number:06}.jsonl"


def table_of(name: str) -> str | None:
    """Return the table that a member is a part of, None if it is none."""
    match = _PART.match(name)
    return match["table"] if match else None


def file_of(name: str) -> str | None:
    """Return the path in the data folder that a member is for, None if it is no file of it."""
    match = _FILE.match(name)
    return match["path"] if match else None
