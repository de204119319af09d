"""The day after a restore over HTTP: what devices know, and going on above it."""

from typing import Annotated, cast

from fastapi import APIRouter, Depends, Request

from fleet_server.access.authentication import Operator
from fleet_server.audit import service as audit
from fleet_server.backup import recovery
from fleet_server.backup.marker import Standstill
from fleet_server.backup.recovery import Survey
from fleet_server.backup.schemas import (
    AfterRestoreBody,
    AfterRestoreShown,
    ElsewhereShown,
    RaisedShown,
    SeenShown,
    StrangerShown,
)
from fleet_server.database import Database
from fleet_server.errors import Unavailable
from fleet_server.request_context import (
    CorrelationId,
    UsedClock,
    UsedDatabase,
    WakePublisher,
)
from fleet_server.trust.catalogue.repository import Catalogue
from fleet_server.trust.endpoints import UsedCatalogue, UsedKeyring
from fleet_server.trust.keyring import Keyring

router = APIRouter(prefix="/v1/trust", tags=["trust"])


def _standstill(request: Request) -> Standstill:
    return cast(Standstill, request.app.state.standstill)


UsedStandstill = Annotated[Standstill, Depends(_standstill)]


@router.get("/after-restore", summary="What devices know that this server does not")
def show_after_restore(
    _operator: Operator,
    database: UsedDatabase,
    catalogue: UsedCatalogue,
    keyring: UsedKeyring,
    clock: UsedClock,
    standstill: UsedStandstill,
) -> AfterRestoreShown:
    """As they told it since the restore, when they connected."""
    return _look(database, catalogue, keyring, standstill, clock.now_ms())[1]


@router.post("/after-restore", summary="Go on above what devices have seen")
def go_on_after_restore(
    body: AfterRestoreBody,
    operator: Operator,
    database: UsedDatabase,
    catalogue: UsedCatalogue,
    keyring: UsedKeyring,
    clock: UsedClock,
    standstill: UsedStandstill,
    correlation_id: CorrelationId,
    wake_publisher: WakePublisher,
) -> RaisedShown:
    """Raises generation, epochs and metadata versions, signs everything anew, and leads the fleet.

    It may be called again for devices that came late.
    """
    now_ms = clock.now_ms()
    restored = standstill.restored
    found, before = _look(database, catalogue, keyring, standstill, now_ms)
    try:
        raised = recovery.raise_trust(
            database,
            catalogue,
            keyring,
            found.seen,
            accept_floors=body.accept_floors,
            strangers=[item.name for item in found.strangers] if body.adopt else [],
            restored_ms=restored.restored_ms if restored is not None else None,
            now_ms=now_ms,
        )
        with database.transaction() as session:
            audit.record(
                session,
                action="trust.after-restore",
                resource_type="fleet",
                resource_name=keyring.fleet,
                outcome="done" if raised.complete else "waits",
                user=operator.name,
                correlation_id=correlation_id,
                detail={
                    "generation": raised.generation,
                    "documents": raised.documents,
                    "reported": found.reported,
                    "known": found.known,
                    "adopted": len(raised.adopted),
                },
                now_ms=now_ms,
            )
        if raised.complete:
            standstill.end()
    except OSError as error:
        raise Unavailable(
            "trust_unwritable",
            f"Trust cannot be written: {error.strerror}.",
            "Make room or repair the disk; then run it again.",
        ) from error
    wake_publisher()
    return RaisedShown(
        generation=raised.generation,
        documents=raised.documents,
        unsigned=raised.unsigned,
        adopted=raised.adopted,
        complete=raised.complete,
        before=before,
    )


def _look(
    database: Database,
    catalogue: Catalogue,
    keyring: Keyring,
    standstill: Standstill,
    now_ms: int,
) -> tuple[Survey, AfterRestoreShown]:
    restored = standstill.restored
    held = recovery.held_by(catalogue, keyring)
    with database.reading() as session:
        found = recovery.survey(
            session,
            keyring.fleet,
            held=held,
            since_ms=restored.restored_ms if restored is not None else 0,
            now_ms=now_ms,
        )
        elsewhere = recovery.running_elsewhere(session, keyring.fleet)
    return found, AfterRestoreShown(
        restored_ms=restored.restored_ms if restored is not None else None,
        backup_made_ms=restored.made_ms if restored is not None else None,
        known=found.known,
        reported=found.reported,
        silent=found.silent,
        held=SeenShown.model_validate(held),
        seen=SeenShown.model_validate(found.seen),
        implausible=found.implausible,
        strangers=[StrangerShown.model_validate(item) for item in found.strangers],
        unknown_releases=[ElsewhereShown.model_validate(item) for item in elsewhere],
    )
