"""The documents that say what to run: the directive, the assignment and the stop.

A directive is the full desired state of one model in one cohort, so that a stage, a pause or a
rollback is one publish whatever the size of the fleet. This module decides their form and which
arm a device is in; the order of the checks on them is in :mod:`fleet_contract.trust.checks`.
"""

from enum import StrEnum
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from fleet_contract import bucket, limits
from fleet_contract.counts import Count
from fleet_contract.errors import Reason, Refused
from fleet_contract.names import Digest, Identity, ModelName

DIRECTIVE_TYPE = "application/vnd.edgefleet.directive.v1+json"
ASSIGNMENT_TYPE = "application/vnd.edgefleet.assignment.v1+json"
STOP_TYPE = "application/vnd.edgefleet.stop.v1+json"

Milliseconds = Count
Bucket = Annotated[str, Meta(pattern=bucket.BUCKET_PATTERN)]


class ReleaseRef(msgspec.Struct, frozen=True):
    """Names one release: the path of its manifest below the server's artifact root, and the
    SHA-256 of the manifest's bytes as they are fetched.
    """

    manifest: Annotated[str, Meta(max_length=300)]
    digest: Digest


Target = ReleaseRef | Literal["disabled"] | None
"""What a device should run: a release; ``"disabled"`` (predict returns a documented error, for
the application's own fallback); or None, nothing yet."""


class Activation(StrEnum):
    """How far a device takes the release of its arm."""

    STAGE_ONLY = "stage_only"
    SHADOW = "shadow"
    ACTIVE = "active"


class Starts(StrEnum):
    """Whether devices that have not started may; does not touch those that have."""

    OPEN = "open"
    PAUSED = "paused"
    CANCELED = "canceled"


class Arm(msgspec.Struct, frozen=True, rename={"first": "from", "last": "to"}):
    """An inclusive range of buckets that gets one release."""

    name: Annotated[str, Meta(min_length=1, max_length=40)]
    first: Bucket
    last: Bucket
    release: Target
    report_every_ms: Milliseconds

    def holds(self, number: int) -> bool:
        """Say whether a bucket lies in this arm."""
        return bucket.read_bucket(self.first) <= number <= bucket.read_bucket(self.last)


class Directive(msgspec.Struct, frozen=True):
    """The signed desired state of one model in one cohort.

    Times are in milliseconds since 1970 (UTC). ``default`` is for whoever is in no arm, and
    ``activation`` says how far an arm's release goes; the default release is always active.
    ``spread_ms``: each device waits its own hash's share of it before it downloads.
    ``soak_ms``: how long a device watches a release that it activated before it calls it
    succeeded. ``retry`` grows when the fleet should try again a release that devices reverted on
    their own. ``standby`` is the release to keep warm for a rollback.
    """

    fleet: Identity
    cohort: Identity
    model: ModelName
    generation: Count
    epoch: Count
    issued_ms: Milliseconds
    expires_ms: Milliseconds
    rollout: Annotated[str, Meta(max_length=64)]
    salt: Annotated[str, Meta(pattern=bucket.SALT_PATTERN)]
    default: Target
    arms: Annotated[list[Arm], Meta(max_length=limits.ARMS)]
    activation: Activation
    starts: Starts
    spread_ms: Milliseconds
    soak_ms: Milliseconds
    report_every_ms: Milliseconds
    retry: Count
    standby: ReleaseRef | None

    def arm_for(self, device: str) -> Arm | None:
        """Return the first arm that holds the device, None for the default.

        Raises:
            Refused: ``malformed`` if salt or arms are not of their form.
        """
        number = bucket.bucket_of(self.salt, device)
        return next((arm for arm in self.arms if arm.holds(number)), None)


class Assignment(msgspec.Struct, frozen=True):
    """What the fleet decided about one device.

    ``pins`` (model → release) and ``blocks`` (model → manifest digests) stand above every
    directive. ``minimum_epochs`` (model → epoch) keeps a newcomer from being fed an old one.
    """

    fleet: Identity
    device: Identity
    generation: Count
    epoch: Count
    issued_ms: Milliseconds
    cohort: Identity
    labels: dict[str, str]
    pins: dict[ModelName, ReleaseRef]
    blocks: dict[ModelName, list[Digest]]
    minimum_epochs: dict[ModelName, Count]


class Stop(msgspec.Struct, frozen=True):
    """The emergency stop of a fleet; it stays retained when lifted, with ``stopped`` false.

    It blocks forward moves only: rollbacks and local reverts are always allowed.
    """

    fleet: Identity
    generation: Count
    epoch: Count
    issued_ms: Milliseconds
    stopped: bool
    reason: Annotated[str, Meta(max_length=300)]


def check_arms(directive: Directive) -> None:
    """Check that the arms are ranges, in order, and do not overlap.

    Raises:
        Refused: ``malformed`` otherwise.
    """
    beyond = -1
    for arm in directive.arms:
        first, last = bucket.read_bucket(arm.first), bucket.read_bucket(arm.last)
        if not beyond < first <= last:
            raise Refused(Reason.MALFORMED, f"arm {arm.name!r} is out of order or overlaps")
        beyond = last
