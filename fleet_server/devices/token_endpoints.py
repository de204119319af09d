"""Enrolment tokens over HTTP: made, listed, revoked; each change with its audit."""

from typing import Annotated

from fastapi import APIRouter, Path

from fleet_server.access.authentication import Operator
from fleet_server.audit import service as audit
from fleet_server.devices import enrolment, repository
from fleet_server.devices.schemas import TokenBody, TokenListed, TokenShown
from fleet_server.errors import NotFound
from fleet_server.request_context import (
    CorrelationId,
    UsedClock,
    UsedDatabase,
    UsedSettings,
)
from fleet_server.trust.endpoints import UsedCatalogue, UsedKeyring

making = APIRouter(prefix="/v1/devices", tags=["devices"])
router = APIRouter(prefix="/v1/enrolment-tokens", tags=["devices"])
TOKENS_SHOWN = 1_000


@making.post("/tokens", status_code=201, summary="Make an enrolment token")
def create_token(
    body: TokenBody,
    operator: Operator,
    database: UsedDatabase,
    keyring: UsedKeyring,
    catalogue: UsedCatalogue,
    clock: UsedClock,
    settings: UsedSettings,
    correlation_id: CorrelationId,
) -> TokenShown:
    """The token names this server and the fleet's root of trust. One for a single device is spent
    by it; one for a batch is for a factory, each name once.
    """
    now_ms = clock.now_ms()
    with database.transaction() as session:
        made = enrolment.create_token(
            session,
            keyring,
            server=settings.devices_url,
            root=catalogue.root_digest,
            labels=body.labels,
            device=body.device,
            prefix=body.prefix,
            count=body.count,
            valid_ms=body.valid_ms,
            random_bytes=clock.random_bytes,
            now_ms=now_ms,
        )
        audit.record(
            session,
            action="device.token",
            resource_type="device",
            resource_name=body.device or body.prefix,
            outcome="done",
            user=operator.name,
            correlation_id=correlation_id,
            detail={
                "id": made.id,
                "labels": body.labels,
                "count": body.count,
                "expires_ms": made.expires_ms,
            },
            now_ms=now_ms,
        )
    return TokenShown(
        id=made.id,
        token=made.token,
        expires_ms=made.expires_ms,
        device=body.device,
        labels=body.labels,
        prefix=body.prefix,
        count=body.count,
    )


@router.get("", summary="The enrolment tokens, the newest first")
def list_tokens(
    _operator: Operator, database: UsedDatabase, settings: UsedSettings
) -> list[TokenListed]:
    """Without their secrets; what is used up, expired or revoked is there, too."""
    with database.reading() as session:
        rows = repository.tokens(session, settings.fleet, TOKENS_SHOWN)
        return [TokenListed.model_validate(row) for row in rows]


@router.delete("/{token}", summary="Revoke an enrolment token")
def revoke_token(
    token: Annotated[str, Path(pattern=r"^[0-9a-f]{12}$")],
    operator: Operator,
    database: UsedDatabase,
    clock: UsedClock,
    settings: UsedSettings,
    correlation_id: CorrelationId,
) -> TokenListed:
    """Devices that it enrolled stay; nobody else gets in by it."""
    now_ms = clock.now_ms()
    with database.transaction() as session:
        row = repository.token_named(session, settings.fleet, token)
        if row is None:
            raise NotFound(
                "no_such_token",
                f"There is no enrolment token {token}.",
                "List them by: edgefleet device tokens.",
            )
        repository.revoke_token(session, row, now_ms)
        audit.record(
            session,
            action="device.token-revoke",
            resource_type="device",
            resource_name=token,
            outcome="done",
            user=operator.name,
            correlation_id=correlation_id,
            detail={"used": row.used, "count": row.count},
            now_ms=now_ms,
        )
        return TokenListed.model_validate(row)
