"""The compliance report of a release: where it comes from, who and what let it pass, how far it
reached, and whether it was taken back.

Says what the system knows and names what it does not; it decides nothing.
"""

from dataclasses import dataclass
from typing import Any

import msgspec
from sqlmodel import Session

from fleet_server.audit import service as audit
from fleet_server.releases import service as releases
from fleet_server.releases.records import ReleaseRecord
from fleet_server.rollouts import repository
from fleet_server.rollouts.repository import RolloutRow

EVIDENCE_MOST = 1_000
APPROVALS = ("release.promote", "rollout.approve", "rollout.reject")


@dataclass(frozen=True, slots=True)
class Report:
    """A release's history as far as it is known; lists come the oldest first."""

    model: str
    version: str
    state: str
    stage: str
    provenance: dict[str, Any]
    staging_gates: list[dict[str, Any]]
    rollouts: list[dict[str, Any]]
    approvals: list[dict[str, Any]]
    skipped_safeguards: list[str]
    rollbacks: list[dict[str, Any]]
    audit: list[dict[str, Any]]
    not_known: list[str]


def report(session: Session, fleet: str, model: str, version: str) -> Report:
    """Return the report of a release in any state.

    Raises:
        NotFound: if there is no such release.
    """
    release = releases.get(session, model, version)
    rows = repository.of_release(session, fleet, model, version)
    entries = audit.of_release(session, model, version)
    approvals = [_said(entry) for entry in entries if entry.action in APPROVALS]
    return Report(
        model=model,
        version=version,
        state=release.state.value,
        stage=release.stage.value,
        provenance=_provenance(release),
        staging_gates=_staging_gates(release),
        rollouts=[_rollout(session, row) for row in rows],
        approvals=approvals,
        skipped_safeguards=sorted({word for entry in entries for word in entry.skipped_safeguards}),
        rollbacks=[_rollback(session, row) for row in rows if row.rollback_ms],
        audit=[_said(entry) for entry in entries],
        not_known=_not_known(release, approvals),
    )


def _provenance(release: ReleaseRecord) -> dict[str, Any]:
    manifest = release.manifest
    metadata = release.upload.options.metadata
    return {
        "pushed_by": release.pushed_by,
        "received_ms": release.received_ms,
        "source_digest": release.upload.source_digest,
        "source_bytes": release.upload.source_bytes,
        "signature": None if release.origin is None else msgspec.to_builtins(release.origin),
        "sources": dict(metadata.sources),
        "notes": dict(metadata.notes),
        "metadata": {
            name: value
            for name, value in msgspec.to_builtins(metadata).items()
            if name not in ("sources", "notes", "classes")
        },
        "manifest_digest": release.digest or "",
        "release_counter": release.counter,
        "artifacts": [
            {"digest": item.artifact.digest, "size_bytes": item.artifact.size_bytes}
            for item in (manifest.variants if manifest is not None else [])
        ],
        "statement": release.provenance or "",
        "lineage": {} if manifest is None else msgspec.to_builtins(manifest.lineage),
    }


def _staging_gates(release: ReleaseRecord) -> list[dict[str, Any]]:
    passed = [
        {"gate": step.name, "verdict": "pass", "figures": msgspec.to_builtins(step.figures)}
        for step in release.steps
    ]
    if release.problem is None:
        return passed
    refused = msgspec.to_builtins(release.problem)
    return [*passed, {"gate": refused.pop("gate"), "verdict": "fail", "figures": refused}]


def _rollout(session: Session, row: RolloutRow) -> dict[str, Any]:
    members = repository.members(session, row.id)
    decided = reversed(repository.evidence(session, row.id, count=EVIDENCE_MOST))
    return {
        "id": row.id,
        "cohort": row.cohort,
        "state": row.state,
        "created_by": row.created_by,
        "created_ms": row.created_ms,
        "started_ms": row.started_ms,
        "ended_ms": row.ended_ms,
        "plan": msgspec.to_builtins(repository.plan_of(row)),
        "exposure": {
            "members": len(members),
            "eligible": sum(member.eligible for member in members),
            "ran_it": sum(member.candidate_seen_ms > 0 for member in members),
            "first_exposed_ms": row.exposed_ms,
        },
        "decisions": [
            {
                "decided_ms": item.decided_ms,
                "kind": item.kind,
                "reason": item.decision["reason"],
                "inputs": item.inputs,
                "gates": [
                    {
                        name: gate[name]
                        for name in ("guardrail", "verdict", "statistic", "bound", "detail")
                    }
                    for gate in item.decision["gates"]
                ],
            }
            for item in decided
        ],
    }


def _rollback(session: Session, row: RolloutRow) -> dict[str, Any]:
    members = repository.members(session, row.id)
    return {
        "rollout": row.id,
        "decided_ms": row.rollback_ms,
        "to": row.stable,
        "reason": row.reason,
        "confirmed": sum(member.confirmed_seen_ms > 0 for member in members),
        "members": len(members),
    }


def _said(entry: audit.Entry) -> dict[str, Any]:
    return {
        name: getattr(entry, name)
        for name in (
            *("sequence", "timestamp", "user", "agent", "action", "outcome", "reason"),
            *("change_ticket", "skipped_safeguards", "correlation_id", "hash"),
        )
    }


def _not_known(release: ReleaseRecord, approvals: list[dict[str, Any]]) -> list[str]:
    missing = []
    if not release.upload.options.metadata.locations:
        missing.append("where the training data and the code lie: the push named none")
    if release.origin is None:
        missing.append("who made the model: the push had no signature")
    if release.manifest is not None and release.provenance is None:
        missing.append("what it was made of: no statement was written when it was staged")
    if not approvals:
        missing.append("an approval: none was recorded")
    return missing
