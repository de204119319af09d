"""Stores the windows that devices report, and reads them back for gates and operators.

Decides that the highest sequence of a window wins, so that lost, late, doubled and reordered
reports do no harm, and that sketches which do not follow the release's schema are dropped while
the window's counters stay. What a figure means for a rollout is not decided here.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import msgspec
import structlog
from sqlmodel import Session

from fleet_contract import codec, limits
from fleet_contract.errors import Refused
from fleet_contract.features import FeatureSchema
from fleet_contract.messages.report import Report, Window, WindowAck, check_sketches
from fleet_server.dispatch.inbound import DeviceAck, Inbound
from fleet_server.telemetry import repository
from fleet_server.telemetry.repository import WindowBody, WindowValues

SchemaOf = Callable[[Session, str], FeatureSchema | None]
"""``schema_of(session, release digest)``: None where the server does not know the release."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class StoredWindow:
    """A window of one device. ``received_ms`` is the server's time of the first message about it,
    ``updated_ms`` of the newest; the times in ``window`` are the device's.
    """

    device: str
    session: str
    model: str
    received_ms: int
    updated_ms: int
    window: Window


def record_reports(
    session: Session, inbound: Sequence[Inbound], now_ms: int, *, schema_of: SchemaOf
) -> list[DeviceAck]:
    """Store a batch of reports, in any order and any number of times.

    Returns:
        One acknowledgement a report: its windows up to the sequences that it carried.
    """
    schemas: dict[str, FeatureSchema | None] = {}
    rows: dict[tuple[str, ...], WindowValues] = {}
    acks: list[DeviceAck] = []
    for item in inbound:
        if not isinstance(item.message, Report):
            continue
        report = item.message
        for window in report.windows:
            if window.release not in schemas:
                schemas[window.release] = schema_of(session, window.release)
            row = _row(item, report.session, _checked(window, schemas[window.release], item))
            key = (
                *(item.fleet, item.device, report.session, item.model),
                *(window.release, window.role.value, str(window.start_ms)),
            )
            known = rows.get(key)
            if known is not None:
                if known["sequence"] >= row["sequence"]:
                    known["received_ms"] = min(known["received_ms"], row["received_ms"])
                    continue
                row["received_ms"] = min(known["received_ms"], row["received_ms"])
            rows[key] = row
        acks.append(
            DeviceAck(
                item.device,
                report.session,
                windows=tuple(
                    WindowAck(item.model, w.release, w.role, w.start_ms, w.sequence)
                    for w in report.windows
                ),
            )
        )
    # In the order of the key, so that two writers lock rows in the same order.
    repository.put_windows(session, [rows[key] for key in sorted(rows)])
    log.debug("reports stored", reports=len(acks), windows=len(rows), now_ms=now_ms)
    return acks


def windows(
    session: Session,
    fleet: str,
    model: str,
    *,
    since_ms: int | None = None,
    devices: Collection[str] | None = None,
) -> list[StoredWindow]:
    """Return a model's windows, ordered by device and start.

    Args:
        session: of the database.
        fleet: the fleet.
        model: the model.
        since_ms: only windows first heard of at or after this time of the server.
        devices: only windows of these.
    """
    return [
        _stored(row)
        for row in repository.windows(session, fleet, model, since_ms=since_ms, devices=devices)
    ]


def newest_windows(
    session: Session, fleet: str, device: str, *, model: str | None, count: int
) -> list[StoredWindow]:
    """Return the last windows of a device, the newest first."""
    return [_stored(row) for row in repository.newest_windows(session, fleet, device, model, count)]


def last_report_ms(session: Session, fleet: str, model: str) -> dict[str, int]:
    """Return device → server time at which it last reported something new about the model."""
    return repository.last_update_ms(session, fleet, model)


def _checked(window: Window, schema: FeatureSchema | None, item: Inbound) -> Window:
    if schema is None:
        return window
    try:
        check_sketches(window, schema)
    except Refused as refused:
        log.warning(
            "sketches dropped",
            device=item.device,
            model=item.model,
            release=window.release,
            reason=refused.reason.value,
            detail=refused.detail,
        )
        return msgspec.structs.replace(window, inputs=None, outputs=None)
    return window


def _row(item: Inbound, session: str, window: Window) -> WindowValues:
    return WindowValues(
        fleet=item.fleet,
        device=item.device,
        session=session,
        model=item.model,
        release=window.release,
        role=window.role.value,
        start_ms=window.start_ms,
        sequence=window.sequence,
        length_ms=window.length_ms,
        closed=window.closed,
        predictions=window.predictions,
        errors=window.errors,
        received_ms=item.received_ms,
        updated_ms=item.received_ms,
        body=codec.encode_msgpack(window),
    )


def _stored(row: WindowBody) -> StoredWindow:
    window = codec.decode_msgpack(row.body, Window, limit_bytes=limits.REPORT_BYTES)
    return StoredWindow(row.device, row.session, row.model, row.received_ms, row.updated_ms, window)
