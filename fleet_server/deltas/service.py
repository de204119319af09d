"""Patches as devices and operators find them, and what is written down about them."""

from collections.abc import Collection
from dataclasses import dataclass

from sqlmodel import Session

from fleet_server.audit import service as audit
from fleet_server.deltas import repository
from fleet_server.deltas.plan import Delta
from fleet_server.deltas.repository import Row
from fleet_server.deltas.states import DeltaState


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one attempt; without a patch its digest is None and its size 0."""

    state: DeltaState
    encode_ms: int
    patch_digest: str | None = None
    patch_bytes: int = 0
    why: str = ""


@dataclass(frozen=True, slots=True)
class DeltaView:
    """A patch that was tried. Sizes in bytes, ``made_ms`` in milliseconds since 1970."""

    model: str
    old_version: str
    new_version: str
    old_digest: str
    new_digest: str
    state: DeltaState
    patch_digest: str | None
    patch_bytes: int
    new_bytes: int
    encode_ms: int
    made_ms: int


def find(session: Session, old_digest: str, new_digest: str) -> DeltaView | None:
    """Return the patch between two artifacts, if one was made."""
    row = repository.find(session, old_digest, new_digest)
    return _view(row) if row is not None and row.patch_digest is not None else None


def of_release(session: Session, model: str, version: str) -> list[DeltaView]:
    """Return what became of the patches that lead to a release."""
    return [_view(row) for row in repository.of_release(session, model, version)]


def everything(session: Session) -> list[DeltaView]:
    """Return all that were tried."""
    return [_view(row) for row in repository.everything(session)]


def record(session: Session, delta: Delta, outcome: Outcome, *, now_ms: int) -> None:
    """Write down what became of a patch."""
    row = Row(
        old_digest=delta.old.digest,
        new_digest=delta.new.digest,
        model=delta.model,
        old_version=delta.old_version,
        new_version=delta.new_version,
        state=outcome.state.value,
        patch_digest=outcome.patch_digest,
        patch_bytes=outcome.patch_bytes,
        new_bytes=delta.new.size_bytes,
        encode_ms=outcome.encode_ms,
        made_ms=now_ms,
    )
    repository.save(session, row)
    detail: dict[str, object] = {
        "from": delta.old_version,
        "old": delta.old.digest,
        "new": delta.new.digest,
        "patch": outcome.patch_digest,
        "patch_bytes": outcome.patch_bytes,
        "new_bytes": delta.new.size_bytes,
    }
    _audit(session, "delta.make", outcome.state.value, _view(row), detail, outcome.why, now_ms)


def forget(session: Session, deltas: Collection[DeltaView], *, now_ms: int) -> None:
    """Forget patches that nobody is expected to ask for any more."""
    for delta in deltas:
        repository.remove(session, delta.old_digest, delta.new_digest)
        detail: dict[str, object] = {"from": delta.old_version, "patch": delta.patch_digest}
        _audit(session, "delta.drop", "dropped", delta, detail, "", now_ms)


def _audit(
    session: Session,
    action: str,
    outcome: str,
    delta: DeltaView,
    detail: dict[str, object],
    why: str,
    now_ms: int,
) -> None:
    audit.record(
        session,
        action=action,
        resource_type="release",
        resource_name=f"{delta.model}/{delta.new_version}",
        outcome=outcome,
        user=audit.SYSTEM,
        correlation_id="",
        detail=detail,
        now_ms=now_ms,
        model_name=delta.model,
        model_version=delta.new_version,
        previous_version=delta.old_version,
        reason=why,
    )


def _view(row: Row) -> DeltaView:
    return DeltaView(
        row.model,
        row.old_version,
        row.new_version,
        row.old_digest,
        row.new_digest,
        DeltaState(row.state),
        row.patch_digest,
        row.patch_bytes,
        row.new_bytes,
        row.encode_ms,
        row.made_ms,
    )
