"""Where a release comes from: the statement of its making, and who signed what was pushed."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision: str | None = "0005"
branch_labels: Any = None
depends_on: Any = None


def upgrade() -> None:
    op.add_column("release", sa.Column("provenance", sa.String(length=64), nullable=True))
    op.add_column("release", sa.Column("origin", sa.String(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("release") as table:
        table.drop_column("origin")
        table.drop_column("provenance")
