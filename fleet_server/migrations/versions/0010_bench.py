"""Devices that time candidates."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision: str | None = "0009"
branch_labels: Any = None
depends_on: Any = None


def upgrade() -> None:
    op.create_table(
        "bench",
        sa.Column("fleet", sa.String(length=63), nullable=False),
        sa.Column("device", sa.String(length=63), nullable=False),
        sa.Column("capabilities", sa.JSON(), nullable=False),
        sa.Column("polled_ms", sa.BigInteger(), nullable=False),
        sa.Column("used_ms", sa.BigInteger(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("jobs_done", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("fleet", "device"),
    )


def downgrade() -> None:
    op.drop_table("bench")
