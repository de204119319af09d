"""Patches between releases."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision: str | None = "0004"
branch_labels: Any = None
depends_on: Any = None


def upgrade() -> None:
    op.create_table(
        "delta",
        sa.Column("old_digest", sa.String(length=64), nullable=False),
        sa.Column("new_digest", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=64), nullable=False),
        sa.Column("old_version", sa.String(length=96), nullable=False),
        sa.Column("new_version", sa.String(length=96), nullable=False),
        sa.Column("state", sa.String(length=10), nullable=False),
        sa.Column("patch_digest", sa.String(length=64), nullable=True),
        sa.Column("patch_bytes", sa.BigInteger(), nullable=False),
        sa.Column("new_bytes", sa.BigInteger(), nullable=False),
        sa.Column("encode_ms", sa.BigInteger(), nullable=False),
        sa.Column("made_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("old_digest", "new_digest"),
    )
    with op.batch_alter_table("delta", schema=None) as batch_op:
        batch_op.create_index("ix_delta_new_digest", ["new_digest"])


def downgrade() -> None:
    op.drop_table("delta")
