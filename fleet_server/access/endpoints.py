"""API tokens over HTTP: one transaction a call, with its audit."""

from typing import Annotated

from fastapi import APIRouter, Path

from fleet_server.access import service
from fleet_server.access.authentication import Operator, UsedAdmission
from fleet_server.access.schemas import TokenInfo, TokenList, TokenMade, TokenRequest
from fleet_server.audit import service as audit
from fleet_server.request_context import CorrelationId, UsedClock, UsedDatabase

router = APIRouter(prefix="/v1/tokens", tags=["tokens"])
TokenId = Annotated[str, Path(pattern="^[0-9a-f]{12}$", examples=["5b0c1d2e3f40"])]


@router.post("", status_code=201, summary="Make an API token")
def create_token(
    body: TokenRequest,
    operator: Operator,
    admission: UsedAdmission,
    database: UsedDatabase,
    clock: UsedClock,
    correlation_id: CorrelationId,
) -> TokenMade:
    """For a person or a program; it can allow no more than the caller may do."""
    now_ms = clock.now_ms()
    wanted = service.Wanted(body.user, body.roles, body.fleets, body.models, body.valid_ms)
    with database.transaction() as session:
        made = service.create_token(
            session,
            admission.roles,
            wanted,
            by=operator,
            random_bytes=clock.random_bytes,
            now_ms=now_ms,
        )
        shown = TokenInfo.model_validate(made.row)
        audit.record(
            session,
            action="token.create",
            resource_type="token",
            resource_name=shown.id,
            outcome="done",
            user=operator.name,
            correlation_id=correlation_id,
            detail=shown.model_dump(include={"user", "roles", "fleets", "models", "expires_ms"}),
            now_ms=now_ms,
        )
    return TokenMade(token=made.token, info=shown)


@router.get("", summary="The API tokens, the newest first")
def list_tokens(_operator: Operator, database: UsedDatabase) -> TokenList:
    """Expired and revoked ones, too; never the tokens themselves, which nobody has kept."""
    with database.reading() as session:
        found = [TokenInfo.model_validate(row) for row in service.tokens(session)]
    return TokenList(tokens=found)


@router.delete("/{token}", summary="Revoke an API token")
def revoke_token(
    token: TokenId,
    operator: Operator,
    admission: UsedAdmission,
    database: UsedDatabase,
    clock: UsedClock,
    correlation_id: CorrelationId,
) -> TokenInfo:
    """By its id, from the next call on."""
    now_ms = clock.now_ms()
    with database.transaction() as session:
        shown = TokenInfo.model_validate(
            service.revoke_token(session, admission.roles, token, now_ms=now_ms)
        )
        audit.record(
            session,
            action="token.revoke",
            resource_type="token",
            resource_name=shown.id,
            outcome="done",
            user=operator.name,
            correlation_id=correlation_id,
            detail={"user": shown.user},
            now_ms=now_ms,
        )
    return shown
