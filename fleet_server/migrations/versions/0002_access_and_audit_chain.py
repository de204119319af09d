"""Tokens get roles, limits and an end; the audit becomes a hash chain.

What the audit held before goes into the chain as it was: the fields that it did not have are
empty. Tokens that were made before may do everything, as before.
"""

import hashlib
import json
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision: str | None = "0001"
branch_labels: Any = None
depends_on: Any = None

GENESIS = "0" * 64
ID_DIGITS = 12


def upgrade() -> None:
    _extend_tokens()
    op.create_table(
        "audit_record",
        sa.Column("sequence", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("model_name", sa.String(length=64), nullable=False),
        sa.Column("model_version", sa.String(length=100), nullable=False),
        sa.Column("record", sa.String(), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("sequence"),
    )
    with op.batch_alter_table("audit_record", schema=None) as batch_op:
        batch_op.create_index("audit_record_by_release", ["model_name", "model_version"])
    op.create_table(
        "audit_head",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "audit_checkpoint",
        sa.Column("sequence", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("made_ms", sa.BigInteger(), nullable=False),
        sa.Column("envelope", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("sequence"),
    )
    _chain_entries()
    op.drop_table("audit_entry")


def downgrade() -> None:
    raise NotImplementedError("a chain cannot be taken apart without losing what it proves")


def _extend_tokens() -> None:
    with op.batch_alter_table("api_token", schema=None) as batch_op:
        batch_op.add_column(sa.Column("id", sa.String(length=16), nullable=True))
        for name in ("roles", "fleets", "models"):
            batch_op.add_column(sa.Column(name, sa.JSON(), nullable=True))
        batch_op.add_column(sa.Column("created_by", sa.String(length=100), nullable=True))
        batch_op.add_column(sa.Column("expires_ms", sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column("revoked_ms", sa.BigInteger(), nullable=True))
    tokens = sa.table(
        "api_token",
        sa.column("token_hash", sa.String),
        sa.column("id", sa.String),
        sa.column("roles", sa.JSON),
        sa.column("fleets", sa.JSON),
        sa.column("models", sa.JSON),
        sa.column("created_by", sa.String),
        sa.column("expires_ms", sa.BigInteger),
        sa.column("revoked_ms", sa.BigInteger),
    )
    op.execute(
        tokens.update().values(
            id=sa.func.substr(tokens.c.token_hash, 1, ID_DIGITS),
            roles=["admin"],
            fleets=[],
            models=[],
            created_by="system",
            expires_ms=0,
            revoked_ms=0,
        )
    )
    with op.batch_alter_table("api_token", schema=None) as batch_op:
        for name, kind in (
            ("id", sa.String(length=16)),
            ("roles", sa.JSON()),
            ("fleets", sa.JSON()),
            ("models", sa.JSON()),
            ("created_by", sa.String(length=100)),
            ("expires_ms", sa.BigInteger()),
            ("revoked_ms", sa.BigInteger()),
        ):
            batch_op.alter_column(name, existing_type=kind, nullable=False)
        batch_op.create_unique_constraint("api_token_id_key", ["id"])


def _chain_entries() -> None:
    connection = op.get_bind()
    old = sa.table(
        "audit_entry",
        sa.column("sequence", sa.BigInteger),
        sa.column("at_ms", sa.BigInteger),
        sa.column("user", sa.String),
        sa.column("action", sa.String),
        sa.column("resource_type", sa.String),
        sa.column("resource_name", sa.String),
        sa.column("outcome", sa.String),
        sa.column("correlation_id", sa.String),
        sa.column("detail", sa.JSON),
    )
    fresh = sa.table(
        "audit_record",
        sa.column("sequence", sa.BigInteger),
        sa.column("model_name", sa.String),
        sa.column("model_version", sa.String),
        sa.column("record", sa.String),
        sa.column("hash", sa.String),
    )
    sequence, previous = 0, GENESIS
    for row in connection.execute(sa.select(old).order_by(old.c.sequence)).mappings().all():
        sequence += 1
        moment = datetime.fromtimestamp(row["at_ms"] / 1_000, UTC)
        record = {
            "sequence": sequence,
            "previous": previous,
            "timestamp": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "agent": "",
            "user": row["user"],
            "environment": "",
            "command": "",
            "resource_type": row["resource_type"],
            "resource_name": row["resource_name"],
            "action": row["action"],
            "model_name": "",
            "model_version": "",
            "previous_version": "",
            "change_ticket": "",
            "outcome": row["outcome"],
            "rollback_config": None,
            "duration_ms": None,
            "reason": "",
            "skipped_safeguards": [],
            "correlation_id": row["correlation_id"],
            "detail": row["detail"],
        }
        text = json.dumps(record, sort_keys=True, separators=(",", ":"))
        hashed = hashlib.sha256(text.encode()).hexdigest()
        connection.execute(
            fresh.insert().values(
                sequence=sequence, model_name="", model_version="", record=text, hash=hashed
            )
        )
        previous = hashed
    head = sa.table(
        "audit_head",
        sa.column("id", sa.Integer),
        sa.column("sequence", sa.BigInteger),
        sa.column("hash", sa.String),
    )
    connection.execute(head.insert().values(id=1, sequence=sequence, hash=previous))
