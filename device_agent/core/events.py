"""What happens to the agent: everything that its shell may tell the core."""

from dataclasses import dataclass

from fleet_contract.errors import Reason
from fleet_contract.manifest import Capabilities
from fleet_contract.messages.presence import NOTHING_SEEN, Seen


@dataclass(frozen=True, slots=True)
class Booted:
    """The process started; ``session`` is 8 random bytes in hexadecimal."""

    session: str
    agent: str
    capabilities: Capabilities


@dataclass(frozen=True, slots=True)
class Connected:
    """The broker accepted the connection that :class:`~effects.Connect` asked for.

    ``metadata`` says which metadata the device holds; what the record knows is not filled in.
    """

    metadata: Seen = NOTHING_SEEN


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection is gone."""


@dataclass(frozen=True, slots=True)
class Received:
    """A message came in on a control topic or on the device's ack topic."""

    topic: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class KeysetFetched:
    """The newest keyset: fresh metadata vouches for these bytes; their content is not checked."""

    document: bytes


@dataclass(frozen=True, slots=True)
class RootTaken:
    """A newer root came over the broker and was stored: what else is trusted may have changed."""


@dataclass(frozen=True, slots=True)
class RootRefused:
    """What came as a root over the broker is not the fleet's."""

    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class Fetched:
    """Manifest and files of a release are in the store, as fresh metadata describes them."""

    model: str
    digest: str
    manifest: str
    version: str
    release_counter: int


@dataclass(frozen=True, slots=True)
class Probed:
    """The release loaded in a child, matched its golden vectors, and stands built and warm."""

    model: str
    digest: str


@dataclass(frozen=True, slots=True)
class Activated:
    """This digest answers predictions now (or ``disabled`` took effect)."""

    model: str
    digest: str


@dataclass(frozen=True, slots=True)
class Failed:
    """A fetch, a probe, an activation or a load did not succeed; what ran before still runs."""

    model: str
    digest: str
    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class GuardTripped:
    """A local guard found the active release unfit."""

    model: str
    digest: str
    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class Tick:
    """The time that :class:`~effects.WakeAt` named has come."""


Event = (
    Booted
    | Connected
    | Disconnected
    | Received
    | KeysetFetched
    | RootTaken
    | RootRefused
    | Fetched
    | Probed
    | Activated
    | Failed
    | GuardTripped
    | Tick
)
