"""Telemetry: cumulative integer state per window, highest sequence wins.

A window is identified by (device, session, release, role, start). Each message about it carries
its whole state so far with a higher sequence, so that lost, late, doubled and reordered messages
do no harm. The device keeps a closed window until its last sequence is acknowledged.
"""

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from fleet_contract import codec, limits
from fleet_contract.counts import Count
from fleet_contract.errors import Reason, Refused
from fleet_contract.features import FeatureSchema
from fleet_contract.messages.presence import Session
from fleet_contract.names import Digest
from fleet_contract.sketches import features as feature_sketches
from fleet_contract.sketches import latency
from fleet_contract.sketches.features import FeatureSketches
from fleet_contract.sketches.latency import LatencySketch


class Role(StrEnum):
    """Whether the release answered predictions, or ran beside the one that did."""

    ACTIVE = "active"
    SHADOW = "shadow"


class Pairs(msgspec.Struct, frozen=True, array_like=True):
    """A shadow candidate compared with the active release on the same inputs.

    ``rows`` pairs, ``agreements`` with the same winning class, ``slower`` where the candidate took
    longer.
    """

    rows: int
    agreements: int
    slower: int


class Window(msgspec.Struct, frozen=True, array_like=True):
    """What happened in one window of one release on one device.

    ``start_ms`` (device time since 1970) and ``length_ms`` say when; ``sequence`` grows with every
    message about this window; ``closed`` says that this is its last state. ``predictions`` counts
    calls, ``errors`` those among them that failed. ``inputs`` and ``outputs`` are None where the
    device dropped them to save space; the counters are always there. ``schema`` is the digest of
    the feature schema that the sketches follow.
    """

    release: Digest
    role: Role
    start_ms: Count
    length_ms: Count
    sequence: Count
    closed: bool
    predictions: Annotated[int, Meta(ge=0, le=limits.ROWS_PER_WINDOW)]
    errors: Annotated[int, Meta(ge=0, le=limits.ROWS_PER_WINDOW)]
    latency: LatencySketch
    schema: Digest
    inputs: FeatureSketches | None
    outputs: FeatureSketches | None
    pairs: Pairs | None


class Report(msgspec.Struct, frozen=True):
    """Windows of one model on one device; ``dropped_sketches`` and ``dropped_windows`` count what
    the device had to give up in this session because its queue was full.
    """

    session: Session
    windows: Annotated[list[Window], Meta(max_length=limits.WINDOWS_PER_REPORT)]
    dropped_sketches: Count = 0
    dropped_windows: Count = 0


class WindowAck(msgspec.Struct, frozen=True, array_like=True):
    """The server has committed this window up to this sequence."""

    model: str
    release: str
    role: Role
    start_ms: int
    sequence: int


class Ack(msgspec.Struct, frozen=True):
    """What the server has committed of what one boot session of a device reported.

    ``progress`` is the highest committed sequence of its progress messages, -1 for none.
    """

    session: Session
    progress: int
    windows: Annotated[list[WindowAck], Meta(max_length=1024)]


def read_report(data: bytes) -> Report:
    """Read a report (MessagePack) and check all that can be checked without its schema.

    Raises:
        Refused: ``too_large`` or ``malformed``.
    """
    report = codec.decode_msgpack(data, Report, limit_bytes=limits.REPORT_BYTES)
    for window in report.windows:
        latency.check(window.latency)
        if window.errors > window.predictions:
            raise Refused(Reason.MALFORMED, "more errors than predictions")
        pairs = window.pairs
        if pairs is not None and not (
            0 <= pairs.agreements <= pairs.rows <= limits.ROWS_PER_WINDOW
            and 0 <= pairs.slower <= pairs.rows
        ):
            raise Refused(Reason.MALFORMED, "the counts of pairs are out of range")
    return report


def check_sketches(window: Window, schema: FeatureSchema) -> None:
    """Check a window's sketches against the schema of its release.

    Raises:
        Refused: ``malformed`` if they are of another schema, or inconsistent.
    """
    if window.schema != schema.digest():
        raise Refused(Reason.MALFORMED, "the window follows another feature schema")
    if window.inputs is not None:
        feature_sketches.check(window.inputs, schema.inputs)
    if window.outputs is not None:
        feature_sketches.check(window.outputs, schema.outputs)


def read_ack(data: bytes) -> Ack:
    """Read an acknowledgement (MessagePack).

    Raises:
        Refused: ``too_large`` or ``malformed``.
    """
    return codec.decode_msgpack(data, Ack, limit_bytes=limits.STATUS_BYTES)
