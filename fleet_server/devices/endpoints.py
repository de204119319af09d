"""Devices, cohorts and the stop over HTTP: one transaction a call, with its audit.

How a device joins, renews and leaves is in :mod:`.identity_endpoints`, the tokens for it in
:mod:`.token_endpoints`.
"""

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query

from fleet_server.access.authentication import Operator
from fleet_server.api_names import CohortName, DeviceName
from fleet_server.audit import service as audit
from fleet_server.devices import service, state_repository, stopping
from fleet_server.devices.schemas import (
    CohortBody,
    CohortShown,
    DeviceDetails,
    DevicePage,
    DeviceShown,
    LabelsBody,
    ProgressShown,
    RefusalShown,
    StopBody,
    StopShown,
)
from fleet_server.devices.service import DeviceView
from fleet_server.request_context import (
    CorrelationId,
    UsedClock,
    UsedDatabase,
    UsedSettings,
    WakePublisher,
)
from fleet_server.trust.endpoints import UsedKeyring

router = APIRouter(prefix="/v1", tags=["devices"])
REFUSALS_SHOWN = 20


@router.get("/devices", summary="The devices, in order of their names")
def list_devices(
    _operator: Operator,
    database: UsedDatabase,
    settings: UsedSettings,
    cohort: Annotated[CohortName | None, Query()] = None,
    after: Annotated[str, Query(max_length=63, description="names above this one")] = "",
    count: Annotated[int, Query(ge=1, le=1_000)] = 100,
) -> DevicePage:
    """A page of the fleet, or of one cohort."""
    with database.reading() as session:
        if cohort is not None:
            service.check_cohort_exists(session, settings.fleet, cohort)
        found = service.devices(session, settings.fleet, cohort=cohort, after=after, count=count)
    return DevicePage(
        devices=[DeviceShown(**shown(view)) for view in found],
        next_after=found[-1].name if len(found) == count else None,
    )


@router.get("/devices/{name}", summary="One device")
def show_device(
    name: DeviceName, _operator: Operator, database: UsedDatabase, settings: UsedSettings
) -> DeviceDetails:
    """What the device is, runs and refused."""
    with database.reading() as session:
        view = service.device(session, settings.fleet, name)
        refused = state_repository.refusals(session, settings.fleet, name, REFUSALS_SHOWN)
    return DeviceDetails(
        **shown(view), refusals=[RefusalShown.model_validate(row) for row in refused]
    )


@router.put("/devices/{name}/labels", summary="Replace a device's labels")
def label_device(
    name: DeviceName,
    body: LabelsBody,
    operator: Operator,
    database: UsedDatabase,
    keyring: UsedKeyring,
    clock: UsedClock,
    correlation_id: CorrelationId,
    wake_publisher: WakePublisher,
) -> DeviceShown:
    """The device moves to the cohort that its labels ask for, and is told by a new assignment."""
    now_ms = clock.now_ms()
    with database.transaction() as session:
        before = service.device(session, keyring.fleet, name)
        view = service.relabel(session, keyring, name=name, labels=body.labels, now_ms=now_ms)
        audit.record(
            session,
            action="device.label",
            resource_type="device",
            resource_name=name,
            outcome="done",
            user=operator.name,
            correlation_id=correlation_id,
            detail={"labels": body.labels, "from": before.cohort, "to": view.cohort},
            now_ms=now_ms,
        )
    wake_publisher()
    return DeviceShown(**shown(view))


@router.post("/cohorts", status_code=201, summary="Create a cohort", tags=["cohorts"])
def create_cohort(
    body: CohortBody,
    operator: Operator,
    database: UsedDatabase,
    keyring: UsedKeyring,
    clock: UsedClock,
    correlation_id: CorrelationId,
    wake_publisher: WakePublisher,
) -> CohortShown:
    """Devices that it takes move to it at once."""
    now_ms = clock.now_ms()
    with database.transaction() as session:
        moved = service.create_cohort(
            session,
            keyring,
            name=body.name,
            selector=body.selector,
            priority=body.priority,
            now_ms=now_ms,
        )
        audit.record(
            session,
            action="cohort.create",
            resource_type="cohort",
            resource_name=body.name,
            outcome="done",
            user=operator.name,
            correlation_id=correlation_id,
            detail={
                "selector": body.selector,
                "priority": body.priority,
                "devices_moved": len(moved),
            },
            now_ms=now_ms,
        )
    wake_publisher()
    return CohortShown(
        name=body.name, selector=body.selector, priority=body.priority, devices=len(moved)
    )


@router.get("/cohorts", summary="The cohorts, the highest priority first", tags=["cohorts"])
def list_cohorts(
    _operator: Operator, database: UsedDatabase, settings: UsedSettings
) -> list[CohortShown]:
    """A device is in the first of them that matches its labels."""
    with database.reading() as session:
        found = service.list_cohorts(session, settings.fleet)
    return [CohortShown.model_validate(cohort) for cohort in found]


@router.get("/fleet/stop", summary="Whether the fleet is stopped", tags=["fleet"])
def show_stop(_operator: Operator, database: UsedDatabase, settings: UsedSettings) -> StopShown:
    """The stop blocks forward moves; rollbacks are always allowed."""
    with database.reading() as session:
        return StopShown.model_validate(stopping.stop_of(session, settings.fleet))


@router.post("/fleet/stop", summary="Stop the fleet, or lift the stop", tags=["fleet"])
def set_stop(
    body: StopBody,
    operator: Operator,
    database: UsedDatabase,
    keyring: UsedKeyring,
    clock: UsedClock,
    correlation_id: CorrelationId,
    wake_publisher: WakePublisher,
) -> StopShown:
    """One signed message tells every device, whatever the size of the fleet."""
    now_ms = clock.now_ms()
    with database.transaction() as session:
        view = stopping.set_stop(
            session, keyring, stopped=body.stopped, reason=body.reason, now_ms=now_ms
        )
        audit.record(
            session,
            action="fleet.stop" if body.stopped else "fleet.lift",
            resource_type="fleet",
            resource_name=keyring.fleet,
            outcome="done",
            user=operator.name,
            correlation_id=correlation_id,
            detail={"epoch": view.epoch},
            now_ms=now_ms,
            reason=view.reason,
        )
    wake_publisher()
    return StopShown.model_validate(view)


def shown(view: DeviceView) -> dict[str, Any]:
    """Return the fields of a device as the API shows it."""
    return {
        "retired_ms": view.retired_ms,
        "alarm": view.alarm,
        "name": view.name,
        "cohort": view.cohort,
        "labels": view.labels,
        "online": view.online,
        "enrolled_ms": view.enrolled_ms,
        "last_seen_ms": view.last_seen_ms,
        "agent": view.agent,
        "capabilities": msgspec.to_builtins(view.capabilities),
        "active": view.active,
        "progress": [
            ProgressShown.model_validate(item) for _, item in sorted(view.progress.items())
        ],
    }
