"""Drafts a migration from what the tables say and the migrations do not yet: for developers.

``python -m fleet_server.migrations.draft "what changes"`` writes the next file of versions/; read
it before you commit it. (While nothing is released yet, delete 0001_first.py and draft "first".)
"""

import sys
import tempfile
from pathlib import Path

import alembic.command
import alembic.config
from sqlalchemy import create_engine

FOLDER = Path(__file__).parent


def draft(message: str) -> Path:
    """Write the next migration and return its path."""
    number = f"{len(list((FOLDER / 'versions').glob('[0-9]*.py'))) + 1:04d}"
    config = alembic.config.Config()
    config.set_main_option("script_location", str(FOLDER))
    config.set_main_option("file_template", "%%(rev)s_%%(slug)s")
    with tempfile.TemporaryDirectory() as folder:
        engine = create_engine(f"sqlite:///{folder}/draft.sqlite")
        with engine.connect() as connection:
            config.attributes["connection"] = connection
            alembic.command.upgrade(config, "head")
            alembic.command.revision(config, message, autogenerate=True, rev_id=number)
        engine.dispose()
    return next((FOLDER / "versions").glob(f"{number}_*.py"))


if __name__ == "__main__":
    sys.stdout.write(f"{draft(sys.argv[1])}\n")
