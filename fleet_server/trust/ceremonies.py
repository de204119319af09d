"""The ceremonies over HTTP: how trust stands, what waits for signatures, and other keys for roles.

Signatures authenticate themselves; the permission only keeps strangers from the server's time. A
change that is refused by the repository leaves no trace but the audit's. What rotating a family
means for its releases is decided in :mod:`fleet_server.releases.revocation`.
"""

import base64
import binascii
from collections.abc import Iterable, Mapping
from typing import Any

from fastapi import APIRouter
from tuf.api.metadata import Key

from fleet_contract.trust.keyset import KEYSET_PATH
from fleet_server.access.authentication import Operator
from fleet_server.access.users import User
from fleet_server.api_names import ModelName
from fleet_server.audit import service as audit
from fleet_server.database import Database
from fleet_server.errors import Forbidden, Invalid
from fleet_server.request_context import CorrelationId, UsedClock, UsedDatabase
from fleet_server.trust import standing
from fleet_server.trust.catalogue import rotation
from fleet_server.trust.catalogue.proposals import Proposal, signing_role
from fleet_server.trust.catalogue.repository import Catalogue
from fleet_server.trust.catalogue.signers import HeldKey
from fleet_server.trust.endpoints import UsedCatalogue, UsedKeyring
from fleet_server.trust.schemas import (
    FileNeed,
    KeyIn,
    Outcome,
    Pending,
    ProposalShown,
    ProposedFile,
    RootIn,
    RotationIn,
    SignaturesIn,
    TrustStatus,
)

router = APIRouter(prefix="/v1/trust", tags=["trust"])
families = APIRouter(prefix="/v1/models", tags=["trust"])


@router.get("/status", summary="How trust stands")
def read_status(
    _operator: Operator, catalogue: UsedCatalogue, keyring: UsedKeyring, clock: UsedClock
) -> TrustStatus:
    """Roles, thresholds, keys and where they are, expiry, what waits, and the next step."""
    return standing.status(catalogue, keyring, now_ms=clock.now_ms())


@router.get("/pending", summary="What waits for signatures")
def read_pending(_operator: Operator, catalogue: UsedCatalogue) -> Pending:
    """Every proposal with the bytes to be signed, and those of the committed versions."""
    return _pending(catalogue, None)


@router.post("/pending/signatures", summary="Bring signatures")
def add_signatures(
    body: SignaturesIn,
    operator: Operator,
    catalogue: UsedCatalogue,
    database: UsedDatabase,
    clock: UsedClock,
    correlation_id: CorrelationId,
) -> Outcome:
    """For one proposal; each is verified, and the last one commits the change."""
    return _sign(body, operator, catalogue, database, clock.now_ms(), correlation_id)


@families.get("/{model}/pending", summary="What waits for the signature of a model's family")
def read_family_pending(model: ModelName, _operator: Operator, catalogue: UsedCatalogue) -> Pending:
    """Releases whose family key is not on the server."""
    return _pending(catalogue, f"model.{model}")


@families.post("/{model}/signatures", summary="Bring the signatures of a model's family")
def add_family_signatures(
    model: ModelName,
    body: SignaturesIn,
    operator: Operator,
    catalogue: UsedCatalogue,
    database: UsedDatabase,
    clock: UsedClock,
    correlation_id: CorrelationId,
) -> Outcome:
    """For one proposal of this model; from CI or a laptop that may push it."""
    if any(signing_role(item.role) != f"model.{model}" for item in body.signatures):
        raise Forbidden("another_role", f"These are not all signatures of the family of {model}.")
    return _sign(body, operator, catalogue, database, clock.now_ms(), correlation_id)


@router.post("/rotations", summary="Give a role other keys")
def rotate(
    body: RotationIn,
    operator: Operator,
    catalogue: UsedCatalogue,
    keyring: UsedKeyring,
    database: UsedDatabase,
    clock: UsedClock,
    correlation_id: CorrelationId,
) -> Outcome:
    """Committed at once if the server has the keys to sign it; otherwise it waits for them."""
    now_ms = clock.now_ms()
    keys = held_keys(body.keys)
    if keys and body.role not in {"root", "targets"}:
        raise Invalid("keys_made_here", f"The server makes the keys of {body.role} itself.")
    if body.role == "director":
        base = catalogue.coming_document(KEYSET_PATH) or keyring.keyset_bytes
        fresh = keyring.propose_directors(
            base, lost=body.lost, now_ms=now_ms, random_bytes=clock.random_bytes
        )
        why = "another director" + (", the old one is compromised" if body.lost else "")
        done = catalogue.publish_document(KEYSET_PATH, fresh, why=why)
    elif body.role in rotation.ONLINE:
        done = rotation.rotate_online(catalogue, body.role)
    else:
        done = rotation.rotate_top(catalogue, body.role, keys, body.threshold)
    detail = {"keys": [key.keyid for key in keys], "threshold": body.threshold, "lost": body.lost}
    note(database, operator, "trust.rotate", body.role, done, detail, now_ms, correlation_id)
    return Outcome(committed=done, what=f"another key for {body.role}")


@router.post("/roots", summary="Publish a root that was made elsewhere")
def publish_root(
    body: RootIn,
    operator: Operator,
    catalogue: UsedCatalogue,
    database: UsedDatabase,
    clock: UsedClock,
    correlation_id: CorrelationId,
) -> Outcome:
    """It has to be version N+1, and signed by the thresholds of both."""
    try:
        data = base64.b64decode(body.root, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Invalid("not_base64", "The root has to be base64.") from error
    done = rotation.take_root(catalogue, data)
    note(database, operator, "trust.root", "root", done, {}, clock.now_ms(), correlation_id)
    return Outcome(committed=done, what="the next root")


def held_keys(keys: Iterable[KeyIn]) -> list[HeldKey]:
    """Return public keys whose private halves are elsewhere.

    Raises:
        Invalid: if one is no key, or has another id than its content says.
    """
    found = []
    for item in keys:
        try:
            key = Key.from_dict(item.keyid, dict(item.public))
            text = str(item.public["keyval"]["public"])
        except (KeyError, ValueError, TypeError) as error:
            raise Invalid("not_a_key", f"{item.keyid[:12]} is not a public key.") from error
        if len(text) > 4_096:
            raise Invalid("not_a_key", f"{item.keyid[:12]} is too large for a public key.")
        found.append(HeldKey(item.keyid, key.to_dict(), ""))
    return found


def note(
    database: Database,
    operator: User,
    action: str,
    name: str,
    done: bool,
    detail: Mapping[str, Any],
    now_ms: int,
    correlation_id: str,
) -> None:
    """Write a ceremony into the audit: done, or waiting for signatures."""
    with database.transaction() as session:
        audit.record(
            session,
            action=action,
            resource_type="role",
            resource_name=name,
            outcome="done" if done else "waiting",
            user=operator.name,
            correlation_id=correlation_id,
            detail=detail,
            now_ms=now_ms,
        )


def _sign(
    body: SignaturesIn,
    operator: User,
    catalogue: Catalogue,
    database: Database,
    now_ms: int,
    correlation_id: str,
) -> Outcome:
    brought = [(item.role, item.keyid, item.signature) for item in body.signatures]
    done = catalogue.add_signatures(body.proposal, brought)
    detail = {"roles": sorted({item.role for item in body.signatures})[:20]}
    detail["keys"] = sorted({item.keyid for item in body.signatures})
    note(database, operator, "trust.sign", body.proposal, done, detail, now_ms, correlation_id)
    return Outcome(committed=done, what="the signed change")


def _pending(catalogue: Catalogue, family: str | None) -> Pending:
    changes = catalogue.changes
    with changes.lock:
        wanted = [
            item for item in changes.pending.values() if family is None or family in item.groups()
        ]
        return Pending(proposals=[_show(catalogue, item) for item in wanted])


def _show(catalogue: Catalogue, proposal: Proposal) -> ProposalShown:
    changes = catalogue.changes
    files = []
    for role, metadata in proposal.metadata().items():
        before = None
        if role == "root":
            before = _text(changes.shown.root.signed_bytes)
        elif f"{role}.json" in changes.shown.snapshot.signed.meta:
            version = changes.shown.snapshot.signed.meta[f"{role}.json"].version
            before = _text(changes.signed_bytes(role, version))
        files.append(
            ProposedFile(role=role, signed_part=_text(metadata.signed_bytes), before=before)
        )
    return ProposalShown(
        id=proposal.id,
        made_ms=proposal.made_ms,
        why=proposal.why,
        needs=[
            FileNeed(
                role=need.role,
                by=need.by,
                threshold=need.threshold,
                signed=sorted(need.signed),
                unsigned=[
                    KeyIn(keyid=keyid, public=key.to_dict())
                    for keyid, key in sorted(need.unsigned.items())
                ],
                missing=need.missing,
            )
            for need in changes.needs(proposal)
        ],
        files=files,
        documents={path: _text(data) for path, data in proposal.documents.items()},
    )


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
