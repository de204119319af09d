"""The tables of every domain in one metadata: what the database must look like.

Domains are found by their tables.py, so that a new one cannot be forgotten.
"""

import importlib
from pathlib import Path

from sqlalchemy import MetaData
from sqlmodel import SQLModel

PACKAGE = "fleet_server"


def all_tables() -> MetaData:
    """Import every domain's tables and return the metadata that they share."""
    for path in sorted(Path(__file__).parent.parent.glob("*/tables.py")):
        importlib.import_module(f"{PACKAGE}.{path.parent.name}.tables")
    return SQLModel.metadata
