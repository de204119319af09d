"""Telemetry as the API shows it."""

from pydantic import BaseModel, ConfigDict

from fleet_contract.messages.report import Pairs, Role
from fleet_contract.sketches.latency import LatencySketch, quantile_us
from fleet_server.telemetry.service import StoredWindow


class LatencyShown(BaseModel):
    """Quantiles of the latency of predictions, within 2%; None where there were none."""

    count: int
    p50_us: float | None
    p95_us: float | None
    p99_us: float | None

    @classmethod
    def of(cls, sketch: LatencySketch) -> "LatencyShown":
        return cls(
            count=sketch.count,
            p50_us=quantile_us(sketch, 0.5),
            p95_us=quantile_us(sketch, 0.95),
            p99_us=quantile_us(sketch, 0.99),
        )


class PairsShown(BaseModel):
    """A shadow candidate against the active release on the same inputs."""

    rows: int
    agreements: int
    slower: int

    @classmethod
    def of(cls, pairs: Pairs) -> "PairsShown":
        return cls(rows=pairs.rows, agreements=pairs.agreements, slower=pairs.slower)


class WindowShown(BaseModel):
    """One window of one release on a device. ``start_ms`` is the device's time, ``received_ms`` and
    ``updated_ms`` the server's of the first and the newest message about it; ``sketches`` says
    whether the device sent sketches of inputs and outputs.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "model": "digits",
                "release": "9f" * 32,
                "role": "active",
                "session": "0011223344556677",
                "start_ms": 1_795_000_000_000,
                "length_ms": 10_000,
                "sequence": 4,
                "closed": True,
                "received_ms": 1_795_000_002_000,
                "updated_ms": 1_795_000_010_000,
                "predictions": 640,
                "errors": 0,
                "latency": {"count": 640, "p50_us": 812.0, "p95_us": 1_190.0, "p99_us": 2_301.0},
                "pairs": None,
                "sketches": True,
            }
        }
    )

    model: str
    release: str
    role: Role
    session: str
    start_ms: int
    length_ms: int
    sequence: int
    closed: bool
    received_ms: int
    updated_ms: int
    predictions: int
    errors: int
    latency: LatencyShown
    pairs: PairsShown | None
    sketches: bool

    @classmethod
    def of(cls, stored: StoredWindow) -> "WindowShown":
        window = stored.window
        pairs = window.pairs
        return cls(
            model=stored.model,
            release=window.release,
            role=window.role,
            session=stored.session,
            start_ms=window.start_ms,
            length_ms=window.length_ms,
            sequence=window.sequence,
            closed=window.closed,
            received_ms=stored.received_ms,
            updated_ms=stored.updated_ms,
            predictions=window.predictions,
            errors=window.errors,
            latency=LatencyShown.of(window.latency),
            pairs=None if pairs is None else PairsShown.of(pairs),
            sketches=window.inputs is not None and window.outputs is not None,
        )


class ReportsShown(BaseModel):
    """A device's newest windows, the newest first."""

    device: str
    windows: list[WindowShown]
