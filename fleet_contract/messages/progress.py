"""Progress: where a device stands with each model, and what it refused.

Progress is state, not a stream of events: the highest sequence wins and a lost message is healed
by the next. The device repeats its newest one until the server acknowledges that it is committed.
"""

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from fleet_contract import codec, limits
from fleet_contract.counts import Count
from fleet_contract.errors import Reason
from fleet_contract.messages.presence import Session
from fleet_contract.names import ModelName


class Phase(StrEnum):
    """The phases of a device deployment; ``idle`` is having nothing to do."""

    IDLE = "idle"
    QUEUED = "queued"
    NOTIFIED = "notified"
    DOWNLOADING = "downloading"
    VERIFYING = "verifying"
    STAGED = "staged"
    SHADOWING = "shadowing"
    ACTIVATING = "activating"
    SOAKING = "soaking"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    REJECTED = "rejected"
    CANCELED = "canceled"
    ROLLED_BACK = "rolled_back"


class ModelProgress(msgspec.Struct, frozen=True):
    """One model on one device.

    ``target`` is the digest that the directive asks for, ``active`` the one that really answers
    predictions, ``standby`` the one kept warm; each may be empty. ``epoch`` is the highest accepted
    one. ``changed_ms`` is the device's time of the last change of phase or active release.
    """

    model: ModelName
    rollout: str
    phase: Phase
    target: str
    active: str
    standby: str
    generation: Count
    epoch: Count
    changed_ms: Count
    reason: Reason | None = None
    detail: str = ""


class Refusal(msgspec.Struct, frozen=True):
    """A control document that the device did not accept."""

    topic: Annotated[str, Meta(max_length=300)]
    reason: Reason
    detail: Annotated[str, Meta(max_length=300)]
    at_ms: Count


class Progress(msgspec.Struct, frozen=True):
    """Everything about a device's deployments; ``sequence`` grows within a boot session, and
    ``boot`` with every boot session.
    """

    session: Session
    boot: Count
    sequence: Count
    models: Annotated[list[ModelProgress], Meta(max_length=64)]
    refusals: Annotated[list[Refusal], Meta(max_length=16)] = []


def read_progress(data: bytes) -> Progress:
    """Read a progress message (MessagePack).

    Raises:
        Refused: ``too_large`` or ``malformed``.
    """
    return codec.decode_msgpack(data, Progress, limit_bytes=limits.STATUS_BYTES)
