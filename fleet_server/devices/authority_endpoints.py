"""The authorities of certificates over HTTP: how they stand, and the steps of their rotations."""

from collections.abc import Callable, Sequence
from typing import Annotated, cast

from fastapi import APIRouter, Depends, Request

from fleet_server.access.authentication import Operator
from fleet_server.audit import service as audit
from fleet_server.devices import authorities
from fleet_server.devices.authentication import UsedAuthority
from fleet_server.devices.schemas import (
    AuthoritiesShown,
    AuthorityShown,
    AuthorityStepBody,
    AuthorityStepShown,
    LineShown,
)
from fleet_server.errors import Invalid, Unavailable
from fleet_server.request_context import CorrelationId, UsedClock, UsedDatabase, UsedSettings
from fleet_server.trust.authority.overview import shown_until_ms
from fleet_server.trust.authority.standing import WORDS, Line
from fleet_server.trust.endpoints import UsedCatalogue

router = APIRouter(prefix="/v1/trust/authorities", tags=["trust"])


def _reload(request: Request) -> Callable[[], None]:
    return cast(Callable[[], None], request.app.state.reload_broker)


def _expel(request: Request) -> Callable[[Sequence[str]], None]:
    return cast(Callable[[Sequence[str]], None], request.app.state.expel)


ReloadBroker = Annotated[Callable[[], None], Depends(_reload)]
Expel = Annotated[Callable[[Sequence[str]], None], Depends(_expel)]


@router.get("", summary="How the authorities of certificates stand")
def read_authorities(
    _operator: Operator, database: UsedDatabase, authority: UsedAuthority, settings: UsedSettings
) -> AuthoritiesShown:
    """Who issues, who is believed, until when, and which devices have not renewed yet."""
    try:
        with database.reading() as session:
            states = [
                authorities.state_of(session, authority, settings.fleet, line) for line in Line
            ]
        until_ms = shown_until_ms(authority)
    except (OSError, ValueError) as error:
        raise _unusable(error) from error
    return AuthoritiesShown(
        server_expires_ms=until_ms,
        lines=[
            LineShown(
                line=state.line.value,
                authorities=[AuthorityShown.model_validate(item) for item in state.authorities],
                overlaps=state.overlaps,
                behind=state.behind,
                names=state.names,
                next_step=_next_step(state),
            )
            for state in states
        ],
    )


@router.post("", summary="Rotate an authority of certificates, or finish that")
def step(
    body: AuthorityStepBody,
    operator: Operator,
    database: UsedDatabase,
    authority: UsedAuthority,
    catalogue: UsedCatalogue,
    settings: UsedSettings,
    clock: UsedClock,
    correlation_id: CorrelationId,
    reload: ReloadBroker,
    expel: Expel,
) -> AuthorityStepShown:
    """To begin, a new authority is made, and both are believed; to finish, the new one alone. With
    ``lost`` both happens at once. Devices whose authority is gone are put out of the broker: their
    certificates are good for one thing, a new one.
    """
    line = Line(body.line)
    if body.finish and body.lost:
        raise Invalid("finish_or_lost", "A lost authority needs no finish: it is gone at once.")
    try:
        if body.finish:
            published = authorities.finish(authority, catalogue, line, reload=reload)
        else:
            published = authorities.begin(
                authority, catalogue, line, stolen=body.lost, reload=reload
            )
        behind = authorities.behind(database, authority, settings.fleet)
    except (OSError, ValueError) as error:
        raise _unusable(error) from error
    with database.transaction() as session:
        audit.record(
            session,
            action="trust.authority",
            resource_type="authority",
            resource_name=line.value,
            outcome="done" if published else "waiting",
            user=operator.name,
            correlation_id=correlation_id,
            detail={"finish": body.finish, "lost": body.lost, "behind": len(behind)},
            now_ms=clock.now_ms(),
        )
    if line is Line.DEVICE and (body.finish or body.lost):
        expel(behind)
    return AuthorityStepShown(
        committed=published,
        what=f"another authority for {WORDS[line]}",
        behind=len(behind) if line is Line.DEVICE else 0,
    )


def _next_step(state: authorities.LineState) -> str:
    word = WORDS[state.line]
    if not state.overlaps:
        return f"{state.behind} devices renew by themselves." if state.behind else "Nothing to do."
    finish = f"edgefleet trust rotate {word} --finish"
    if state.behind:
        return f"When the {state.behind} devices have renewed, or sooner to make them: {finish}"
    return f"Finish the rotation: {finish}"


def _unusable(error: Exception) -> Unavailable:
    return Unavailable(
        "pki_unusable",
        f"The authorities' folder cannot be used: {type(error).__name__}.",
        "Make room or mend the folder pki of the data folder; look at edgefleet trust status, "
        "then run it again.",
    )
