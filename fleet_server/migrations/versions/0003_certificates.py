"""Devices get certificates in the place of passwords; tokens may be for many devices.

A password cannot become a certificate: devices that were enrolled before are enrolled again, under
their own names, with a token of `edgefleet device replace`.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision: str | None = "0002"
branch_labels: Any = None
depends_on: Any = None

ID_DIGITS = 12


def upgrade() -> None:
    with op.batch_alter_table("device", schema=None) as batch_op:
        batch_op.drop_column("password_hash")
        batch_op.add_column(sa.Column("retired_ms", sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column("alarm", sa.String(length=40), nullable=True))
        batch_op.add_column(sa.Column("alarm_ms", sa.BigInteger(), nullable=True))
    op.create_table(
        "device_certificate",
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("fleet", sa.String(length=63), nullable=False),
        sa.Column("device", sa.String(length=63), nullable=False),
        sa.Column("serial", sa.String(length=40), nullable=False),
        sa.Column("key_hash", sa.String(length=64), nullable=False),
        sa.Column("issuer", sa.String(length=64), nullable=False),
        sa.Column("token_hash", sa.String(length=64), nullable=False),
        sa.Column("issued_ms", sa.BigInteger(), nullable=False),
        sa.Column("not_after_ms", sa.BigInteger(), nullable=False),
        sa.Column("superseded_ms", sa.BigInteger(), nullable=True),
        sa.Column("revoked_ms", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("fingerprint"),
    )
    with op.batch_alter_table("device_certificate", schema=None) as batch_op:
        batch_op.create_index("certificate_by_device", ["fleet", "device"])
    with op.batch_alter_table("presence", schema=None) as batch_op:
        batch_op.add_column(sa.Column("replaced_session", sa.String(length=16), nullable=True))
    op.execute("UPDATE presence SET replaced_session = ''")
    with op.batch_alter_table("presence", schema=None) as batch_op:
        batch_op.alter_column(
            "replaced_session", existing_type=sa.String(length=16), nullable=False
        )
    _extend_tokens()


def downgrade() -> None:
    raise NotImplementedError("a certificate cannot become a password")


def _extend_tokens() -> None:
    added: dict[str, Any] = {
        "id": sa.String(length=12),
        "prefix": sa.String(length=63),
        "replaces": sa.Boolean(),
        "count": sa.Integer(),
        "used": sa.Integer(),
        "created_ms": sa.BigInteger(),
    }
    with op.batch_alter_table("enrolment_token", schema=None) as batch_op:
        for name, kind in added.items():
            batch_op.add_column(sa.Column(name, kind, nullable=True))
        batch_op.add_column(sa.Column("revoked_ms", sa.BigInteger(), nullable=True))
    tokens = sa.table(
        "enrolment_token",
        sa.column("secret_hash", sa.String),
        sa.column("used_ms", sa.BigInteger),
        sa.column("expires_ms", sa.BigInteger),
        *(sa.column(name, kind) for name, kind in added.items()),
    )
    op.execute(
        tokens.update().values(
            id=sa.func.substr(tokens.c.secret_hash, 1, ID_DIGITS),
            prefix="",
            replaces=False,
            count=1,
            used=sa.case((tokens.c.used_ms.is_(None), 0), else_=1),
            created_ms=0,
        )
    )
    with op.batch_alter_table("enrolment_token", schema=None) as batch_op:
        batch_op.drop_column("used_ms")
        for name, kind in added.items():
            batch_op.alter_column(name, existing_type=kind, nullable=False)
