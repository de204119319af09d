"""What devices have seen, and who speaks without being known: for the day after a restore."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision: str | None = "0003"
branch_labels: Any = None
depends_on: Any = None


def upgrade() -> None:
    op.create_table(
        "device_seen",
        sa.Column("fleet", sa.String(length=63), nullable=False),
        sa.Column("device", sa.String(length=63), nullable=False),
        sa.Column("reported_ms", sa.BigInteger(), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("root", sa.BigInteger(), nullable=False),
        sa.Column("timestamp", sa.BigInteger(), nullable=False),
        sa.Column("snapshot", sa.BigInteger(), nullable=False),
        sa.Column("targets", sa.BigInteger(), nullable=False),
        sa.Column("families", sa.JSON(), nullable=False),
        sa.Column("release_floors", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("fleet", "device"),
    )
    op.create_table(
        "stranger",
        sa.Column("fleet", sa.String(length=63), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("first_ms", sa.BigInteger(), nullable=False),
        sa.Column("last_ms", sa.BigInteger(), nullable=False),
        sa.Column("agent", sa.String(length=40), nullable=False),
        sa.Column("active", sa.JSON(), nullable=False),
        sa.Column("capabilities", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("fleet", "name"),
    )


def downgrade() -> None:
    op.drop_table("stranger")
    op.drop_table("device_seen")
