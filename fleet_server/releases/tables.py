"""Table of releases: one row a version of a model, from its upload on."""

from sqlalchemy import BigInteger, UniqueConstraint
from sqlmodel import Field, SQLModel


class ReleaseRow(SQLModel, table=True):
    """One release.

    ``upload`` names the folder of the uploaded files while the release is being staged.
    ``attempts`` counts how often staging began. ``options``, ``steps`` and ``problem`` are JSON.
    ``manifest`` (JSON) and ``baseline`` (MessagePack) repeat what is in the store,
    so that a decision needs no file. ``provenance`` is the digest of the sealed statement of what
    was made out of what; ``origin`` (JSON) is what was verified of whoever signed the upload.
    ``stage`` is how far an approver let it go, ``promoted_ms`` when it came into production.
    ``card`` is the digest of the model card.
    """

    __tablename__ = "release"
    __table_args__ = (UniqueConstraint("model", "counter"),)

    model: str = Field(primary_key=True, max_length=64)
    version: str = Field(primary_key=True, max_length=96)
    counter: int = Field(sa_type=BigInteger)
    state: str = Field(max_length=10, index=True)
    pushed_by: str = Field(max_length=100)
    correlation_id: str = Field(max_length=100)
    received_ms: int = Field(sa_type=BigInteger)
    changed_ms: int = Field(sa_type=BigInteger)
    attempts: int
    upload: str = Field(max_length=32)
    source_digest: str = Field(max_length=64)
    source_bytes: int = Field(sa_type=BigInteger)
    options: str
    steps: str
    problem: str | None = None
    digest: str | None = Field(default=None, max_length=64, unique=True)
    manifest: bytes | None = None
    baseline: bytes | None = None
    provenance: str | None = Field(default=None, max_length=64)
    origin: str | None = None
    stage: str = Field(
        default="staging", max_length=10, sa_column_kwargs={"server_default": "staging"}
    )
    promoted_ms: int | None = Field(default=None, sa_type=BigInteger)
    card: str | None = Field(default=None, max_length=64)
