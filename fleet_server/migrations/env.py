"""What Alembic runs: on the connection that the program hands over, in one transaction."""

from typing import Any, Literal

from alembic import context
from sqlmodel import AutoString

from fleet_server.migrations.metadata import all_tables


def render_item(kind: str, item: Any, _context: Any) -> str | Literal[False]:
    """Write SQLModel's strings as SQLAlchemy's, so that a migration outlives SQLModel."""
    if kind == "type" and isinstance(item, AutoString):
        return f"sa.String(length={item.length})" if item.length else "sa.String()"
    return False


connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=all_tables(),
    render_item=render_item,
    # SQLite can, once the driver is kept from committing on its own: a migration is all or nothing.
    transactional_ddl=True,
    # SQLite changes a column by copying the table.
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
connection.commit()
