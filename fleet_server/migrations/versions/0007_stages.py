"""How far an approver let a release go: staging, production, archived.

What is there already begins in staging: nothing that runs is touched, but before it can be rolled
out anew in a production environment, somebody has to promote it.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision: str | None = "0006"
branch_labels: Any = None
depends_on: Any = None


def upgrade() -> None:
    op.add_column(
        "release",
        sa.Column("stage", sa.String(length=10), nullable=False, server_default="staging"),
    )
    op.add_column("release", sa.Column("promoted_ms", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("release") as table:
        table.drop_column("promoted_ms")
        table.drop_column("stage")
