"""What is known of bench devices: who is there, which numbers their jobs have, what they did.

Decides which devices are benches (an operator labels them so), when one counts as being there, and
that a number of a job never comes twice, also after the database was restored from a backup: the
device says what it began.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
from sqlmodel import Session

from fleet_contract import codec
from fleet_contract.manifest import Capabilities
from fleet_contract.messages.bench import BenchPoll, BenchResult
from fleet_server.audit import service as audit
from fleet_server.benches import repository
from fleet_server.benches.choosing import Seat
from fleet_server.benches.repository import Row
from fleet_server.devices import service as devices
from fleet_server.devices.service import DeviceView
from fleet_server.errors import Forbidden, NotFound

BENCH = "bench"
"""The label, of any value, by which an operator makes a device a bench: candidates and the float
model are for those alone, and no device in the field can make itself one."""
THERE_MS = 60_000
"""Who asked for a job or handed in a result within this time is there; a device asks at least every
half minute."""


@dataclass(frozen=True, slots=True)
class BenchView:
    """A bench device; ``there`` says that it asked for a job a moment ago."""

    device: str
    labels: Mapping[str, str]
    capabilities: Capabilities
    there: bool
    polled_ms: int
    used_ms: int
    jobs_done: int


def sighted(session: Session, fleet: str, device: str, poll: BenchPoll, *, now_ms: int) -> None:
    """Note that a device asks for a job.

    Raises:
        Forbidden: if no operator has made it a bench.
    """
    if _known(session, fleet, device) is None:
        raise Forbidden(
            "not_a_bench",
            f"{device} is not labelled as a bench device.",
            f"An operator does that: edgefleet device label {device} --label {BENCH}=yes, "
            "and its other labels with it.",
        )
    capabilities = msgspec.to_builtins(poll.capabilities)
    row = repository.lock(session, fleet, device)
    if row is None:
        row = Row(
            fleet=fleet,
            device=device,
            capabilities=capabilities,
            polled_ms=now_ms,
            used_ms=0,
            number=poll.done,
            jobs_done=0,
        )
    row.capabilities, row.polled_ms = capabilities, now_ms
    row.number = max(row.number, poll.done)
    repository.save(session, row)


def every(session: Session, fleet: str, *, now_ms: int) -> list[BenchView]:
    """Return all devices that are benches now and ever asked for a job, in order of their names."""
    found = []
    for row in repository.everything(session, fleet):
        known = _known(session, fleet, row.device)
        if known is not None:
            capabilities = msgspec.convert(row.capabilities, codec.prepared(Capabilities))
            found.append(
                BenchView(
                    row.device,
                    known.labels,
                    capabilities,
                    now_ms - row.polled_ms < THERE_MS,
                    row.polled_ms,
                    row.used_ms,
                    row.jobs_done,
                )
            )
    return found


def seats(session: Session, fleet: str, *, now_ms: int) -> list[Seat]:
    """Return the bench devices that are there."""
    return [
        Seat(view.device, view.labels, view.capabilities, view.used_ms)
        for view in every(session, fleet, now_ms=now_ms)
        if view.there
    ]


def next_number(session: Session, fleet: str, device: str, *, now_ms: int) -> int:
    """Return the number of a device's next job, and note that it is given one.

    Raises:
        NotFound: if the device never was a bench.
    """
    row = repository.lock(session, fleet, device)
    if row is None:
        raise NotFound("no_such_bench", f"{device} is no bench device.")
    row.number = max(row.number + 1, now_ms)
    row.used_ms = now_ms
    repository.save(session, row)
    return row.number


def record_result(
    session: Session,
    fleet: str,
    device: str,
    number: int,
    release: str,
    result: BenchResult,
    *,
    correlation_id: str,
    now_ms: int,
) -> None:
    """Count a job that a device has done, and keep in the audit what it said."""
    row = repository.lock(session, fleet, device)
    if row is not None:
        row.jobs_done += 1
        # It was busy until now, and is there for the next job.
        row.polled_ms = now_ms
        repository.save(session, row)
    timed = sum(item.reason is None for item in result.timed)
    audit.record(
        session,
        action="bench.result",
        resource_type="device",
        resource_name=device,
        outcome="done" if result.reason is None else "refused",
        user=f"device:{device}",
        correlation_id=correlation_id,
        detail={
            "job": number,
            "release": release,
            "timed": timed,
            "not_timed": len(result.timed) - timed,
        },
        now_ms=now_ms,
        reason="" if result.reason is None else result.reason.value,
    )


def _known(session: Session, fleet: str, device: str) -> DeviceView | None:
    """Return a device that is a bench, None for any other."""
    try:
        found = devices.device(session, fleet, device)
    except NotFound:
        return None
    return None if found.retired_ms is not None or BENCH not in found.labels else found
