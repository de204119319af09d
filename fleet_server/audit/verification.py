"""Signed checkpoints, and whether the chain is what it was when they were signed.

A chain alone shows that a record was changed, not that all of it was written anew by somebody who
may write the database. A checkpoint does: it signs the hash of one record, and so of all before
it. Which key signs, and which keys are believed, is the caller's matter.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from sqlmodel import Session

from fleet_contract.errors import Reason, Refused
from fleet_contract.trust import envelope
from fleet_server.audit import chain, repository
from fleet_server.audit.chain import Finding, Link, Walk

PAYLOAD_TYPE = "application/vnd.edgefleet.audit-checkpoint.v1+json"
CHECKPOINT_BYTES = 8_192


@dataclass(frozen=True, slots=True)
class Seal:
    """Who signs checkpoints: ``sign`` returns the envelope of a payload; ``believed`` says which
    keys are believed now, key id → raw public key. Both change while the server runs.
    """

    sign: Callable[[bytes], bytes]
    believed: Callable[[], Mapping[str, bytes]]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The signed statement: at ``sequence`` the chain had this hash."""

    sequence: int
    made_ms: int
    envelope: str


@dataclass(frozen=True, slots=True)
class Verification:
    """How a chain was found. ``signed_sequence`` is the last record that a believed key vouches
    for; what comes after can still be cut off without a trace.
    """

    records: int
    head: str
    checkpoints: int
    signed_sequence: int
    findings: Sequence[Finding]

    @property
    def intact(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings


def make_checkpoint(session: Session, seal: Seal, *, fleet: str, now_ms: int) -> Checkpoint | None:
    """Sign the chain as it is now, unless that is done already; None of an empty chain.

    What a key of the past has signed is signed anew: nobody believes that key any more.
    """
    end = repository.head(session, lock=True)
    if not end.sequence:
        return None
    row = repository.checkpoint(session, end.sequence)
    if row is None or _is_of_the_past(row.envelope, seal.believed()):
        payload = chain.canonical(
            {"fleet": fleet, "sequence": end.sequence, "hash": end.hash, "made_ms": now_ms}
        )
        row = repository.keep_checkpoint(
            session,
            sequence=end.sequence,
            made_ms=now_ms,
            envelope=seal.sign(payload.encode()).decode(),
        )
    return Checkpoint(row.sequence, row.made_ms, row.envelope)


def checkpoints(session: Session) -> list[Checkpoint]:
    """Return all checkpoints, the oldest first."""
    return [
        Checkpoint(row.sequence, row.made_ms, row.envelope)
        for row in repository.checkpoints(session)
    ]


def export(session: Session, *, after: int, count: int) -> str:
    """Return records above a sequence number as they were hashed, a line each, in order."""
    return "".join(f"{row.record}\n" for row in repository.page(session, after=after, count=count))


def verify(session: Session, keys: Mapping[str, bytes], *, fleet: str) -> Verification:
    """Walk the whole chain as the database has it.

    Args:
        session: one state of the database.
        keys: key id → raw public key, those that are believed now.
        fleet: whose checkpoints count.
    """
    signed = checkpoints(session)
    walk = Walk(item.sequence for item in signed)
    for row in repository.chain(session):
        columns = {"model_name": row.model_name, "model_version": row.model_version}
        walk.step(Link(row.sequence, row.record, row.hash, columns))
    end = repository.head(session)
    walk.end(end.sequence, end.hash)
    return _finish(walk, signed, keys, fleet)


def verify_export(
    lines: Iterator[str], signed: Sequence[Checkpoint], keys: Mapping[str, bytes], *, fleet: str
) -> Verification:
    """Walk an exported chain, without asking the server that wrote it."""
    walk = Walk(item.sequence for item in signed)
    for link in chain.links(lines):
        walk.step(link)
    return _finish(walk, signed, keys, fleet)


def _finish(
    walk: Walk, signed: Sequence[Checkpoint], keys: Mapping[str, bytes], fleet: str
) -> Verification:
    vouched = 0
    stated = {item.sequence for item in signed}
    for item in sorted(signed, key=lambda item: item.sequence):
        problem = _judge(item, walk, keys, fleet)
        if problem is None:
            vouched = item.sequence
        elif problem:
            walk.find(item.sequence, problem)
    if signed and not vouched and not any(item.sequence in stated for item in walk.findings):
        walk.find(0, "no checkpoint is signed by a key that is believed")
    return Verification(walk.sequence, walk.hash, len(signed), vouched, tuple(walk.findings))


def _is_of_the_past(text: str, keys: Mapping[str, bytes]) -> bool:
    try:
        _unseal(text, keys)
    except Refused as refused:
        return refused.reason is Reason.UNKNOWN_KEY
    return False


def _unseal(text: str, keys: Mapping[str, bytes]) -> bytes:
    data = text.encode("ascii", "replace")
    return envelope.unseal(data, PAYLOAD_TYPE, keys, limit_bytes=CHECKPOINT_BYTES)


def _judge(item: Checkpoint, walk: Walk, keys: Mapping[str, bytes], fleet: str) -> str | None:
    """Return what is wrong with a checkpoint; None: it vouches; empty: by a key of the past."""
    try:
        payload = _unseal(item.envelope, keys)
    except Refused as refused:
        # A later checkpoint, by a key of today, covers all that this one did.
        return "" if refused.reason is Reason.UNKNOWN_KEY else f"checkpoint: {refused.detail}"
    stated = json.loads(payload)
    if (stated.get("sequence"), stated.get("fleet")) != (item.sequence, fleet):
        return "checkpoint: it was made for another record or fleet"
    found = walk.hashes.get(item.sequence)
    if found is None:
        return "missing: a checkpoint vouches for it"
    if found != stated.get("hash"):
        return "altered: it is not what a checkpoint vouches for"
    return None
