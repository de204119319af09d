"""What the agent does: everything that the core may ask its shell for, performed in order."""

from dataclasses import dataclass

from device_agent.core.state import Record
from fleet_contract.messages.report import Ack
from fleet_contract.trust.directive import ReleaseRef


@dataclass(frozen=True, slots=True)
class Persist:
    """Store the record durably before any later effect is performed."""

    record: Record


@dataclass(frozen=True, slots=True)
class Connect:
    """Connect to the broker, clean, with this last will, after a jittered delay of the shell's."""

    will_topic: str
    will_payload: bytes


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Subscribe with QoS 1; retained messages are wanted."""

    filters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """Give a subscription up."""

    filters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Publish:
    """Publish with QoS 1."""

    topic: str
    payload: bytes
    retain: bool


@dataclass(frozen=True, slots=True)
class FetchKeyset:
    """Fetch the newest keyset; answered by ``KeysetFetched`` or by nothing."""


@dataclass(frozen=True, slots=True)
class TakeRoot:
    """Check what came as the newest root, and store it if the one that is held vouches for it.
    Answered by ``RootTaken``, ``RootRefused`` or, if it is no news, by nothing."""

    document: bytes


@dataclass(frozen=True, slots=True)
class Load:
    """At start: load what was active, and the standby beside it. Answered by ``Failed`` only if the
    active release does not load."""

    model: str
    active: ReleaseRef | None
    standby: ReleaseRef | None


@dataclass(frozen=True, slots=True)
class Fetch:
    """Get the manifest and the files that fit this device, resuming what is there; verify them.
    Answered by ``Fetched`` or ``Failed``."""

    model: str
    release: ReleaseRef


@dataclass(frozen=True, slots=True)
class CancelFetch:
    """Nobody wants this release any more; stop fetching it. Not answered."""

    model: str
    digest: str


@dataclass(frozen=True, slots=True)
class Probe:
    """Try the release in a child, then build and warm it beside the running one. Answered by
    ``Probed`` or ``Failed``."""

    model: str
    release: ReleaseRef


@dataclass(frozen=True, slots=True)
class StartShadow:
    """Run the release on a sample of what the active one answers."""

    model: str
    release: ReleaseRef


@dataclass(frozen=True, slots=True)
class StopShadow:
    """End the shadow run; the release stays built."""

    model: str


@dataclass(frozen=True, slots=True)
class Activate:
    """Exchange the active release for this one and keep the old one warm. Answered by
    ``Activated`` or ``Failed``."""

    model: str
    release: ReleaseRef


@dataclass(frozen=True, slots=True)
class Disable:
    """Make predictions return the documented error. Answered by ``Activated``."""

    model: str


@dataclass(frozen=True, slots=True)
class DropStandby:
    """Free the memory of the standby; its files stay."""

    model: str


@dataclass(frozen=True, slots=True)
class Discard:
    """Remove a release's files from the store."""

    model: str
    digest: str


@dataclass(frozen=True, slots=True)
class ReportEvery:
    """Close and send a telemetry window of this model at this interval, in milliseconds."""

    model: str
    every_ms: int


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The server committed reports: forget those windows."""

    ack: Ack


@dataclass(frozen=True, slots=True)
class WakeAt:
    """Send ``Tick`` at this time, or at the next one asked for if that is earlier."""

    at_ms: int


Effect = (
    Persist
    | Connect
    | Subscribe
    | Unsubscribe
    | Publish
    | FetchKeyset
    | TakeRoot
    | Load
    | Fetch
    | CancelFetch
    | Probe
    | StartShadow
    | StopShadow
    | Activate
    | Disable
    | DropStandby
    | Discard
    | ReportEvery
    | Acknowledged
    | WakeAt
)
