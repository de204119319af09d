"""What the agent remembers: the persisted record, and what lives only as long as the process.

Decides the form of the record on disk and how older forms are read. The record is complete: at any
kill point it names a release that works, since ``active`` changes only after a swap was confirmed.
"""

from enum import StrEnum
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from fleet_contract import codec
from fleet_contract.counts import Count
from fleet_contract.errors import Reason, Refused
from fleet_contract.manifest import Capabilities
from fleet_contract.messages.presence import NOTHING_SEEN, Seen
from fleet_contract.messages.progress import Phase, Refusal
from fleet_contract.trust.checks import Acceptance
from fleet_contract.trust.directive import Assignment, Directive, ReleaseRef, Stop
from fleet_contract.trust.keyset import Keyset

RECORD_VERSION = 1
RECORD_BYTES = 4 * 1024 * 1024
"""Cap on the record's size: 64 models with the largest directive each take less."""

Boot = Annotated[int, Meta(ge=0, le=1 << 40)]
"""A number of starts: with the connections of each start behind it, it still fits 63 bits."""

DISABLED = "disabled"
"""Stands where a digest would: the model was taken away on purpose."""

MODELS = 64
"""Models that one device runs at the most; a directive for one more is refused."""


class Move(StrEnum):
    """What an activation under way is for."""

    FORWARD = "forward"
    BACK = "back"


class Admitted(msgspec.Struct, frozen=True):
    """A release that passed every check on this device and whose files it holds; ``ran`` says that
    it was active here: only to such a release can the device move back."""

    ref: ReleaseRef
    version: str
    release_counter: Count
    admitted_ms: Count
    ran: bool = False


class ModelState(msgspec.Struct, frozen=True):
    """One model on this device.

    ``target`` is the digest of the deployment under way or last ended (empty: none yet, or
    :data:`DISABLED`). ``due_ms`` is when the current phase may go on by itself. ``attempts`` counts
    the transient failures of this deployment, ``failures`` (digest → count) the others, over
    restarts. ``unsure`` says that an exchange was overtaken whose answer has not come: what is
    active may not be what answers. ``held_off`` maps a digest to the directive's ``retry`` at which
    it was given up here.
    """

    model: str
    directive: Directive | None = None
    phase: Phase = Phase.IDLE
    target: str = ""
    move: Move = Move.FORWARD
    active: ReleaseRef | None = None
    standby: ReleaseRef | None = None
    disabled: bool = False
    unsure: bool = False
    due_ms: int | None = None
    attempts: Count = 0
    failures: dict[str, int] = {}
    held_off: dict[str, int] = {}
    admitted: list[Admitted] = []
    reason: Reason | None = None
    detail: str = ""
    changed_ms: Count = 0

    @property
    def active_digest(self) -> str:
        """Digest of what answers predictions; empty for nothing."""
        return self.active.digest if self.active is not None else ""

    @property
    def standby_digest(self) -> str:
        """Digest of what is kept warm; empty for nothing."""
        return self.standby.digest if self.standby is not None else ""

    def holds(self, digest: str) -> ReleaseRef | None:
        """Return the admitted release of this digest, None if the device has not got it."""
        return next((item.ref for item in self.admitted if item.ref.digest == digest), None)

    def ran(self, digest: str) -> bool:
        """Say whether this device has this release and was once run by it."""
        if digest and digest in (self.active_digest, self.standby_digest):
            return True
        return any(item.ran for item in self.admitted if item.ref.digest == digest)

    def reached(self, digest: str) -> bool:
        """Say whether this, a digest or :data:`DISABLED`, is what answers predictions."""
        if digest == DISABLED:
            return self.disabled
        return bool(digest) and not self.disabled and self.active_digest == digest

    def quarantined(self, digest: str) -> bool:
        """Say whether a release was given up here, and the fleet has not asked for it again."""
        held_off = self.held_off.get(digest, -1)
        return held_off >= (self.directive.retry if self.directive is not None else 0)


class Record(msgspec.Struct, frozen=True):
    """Everything that must survive a restart, written as a whole.

    ``acceptances`` maps ``stop``, ``assignment`` and ``cohort/model`` to the highest document
    accepted. ``time_floor_ms`` is the latest issue time in an accepted document: the device's time
    is never believed to be earlier. ``boot`` counts the starts of the agent,
    ``unconfirmed_boots`` the latest ones of which nothing was heard after they began to load.
    ``loading`` is the digest that such a start was loading when it ended.
    """

    fleet: str
    device: str
    keyset: Keyset
    boot: Boot = 0
    time_floor_ms: Count = 0
    assignment: Assignment | None = None
    stop: Stop | None = None
    acceptances: dict[str, Acceptance] = {}
    models: dict[str, ModelState] = {}
    unconfirmed_boots: Count = 0
    loading: str = ""
    version: int = RECORD_VERSION


class Live(msgspec.Struct, frozen=True):
    """What is forgotten at a restart.

    ``births`` counts the connections of this process. ``loading`` holds until something was heard
    after the models were loaded. ``assignment_seen``, ``stop_seen`` and ``directives_seen`` (names
    of models) say what came in over the present connection: without them the device makes no
    forward move. ``progress_repeats`` counts how often the same progress was sent again.
    ``parked`` holds one control message that an unknown key signed, until the keyset is fresh;
    ``keyset_asks`` counts how often that was asked for in vain.
    ``refusals`` are kept until a progress message of at least their sequence was acknowledged.
    ``metadata`` is what the shell held of it when it last connected.
    """

    session: str = ""
    agent: str = ""
    capabilities: Capabilities | None = None
    connected: bool = False
    births: int = 0
    loading: bool = False
    assignment_seen: bool = False
    stop_seen: bool = False
    directives_seen: frozenset[str] = frozenset()
    progress_sequence: int = 0
    progress_acknowledged: int = -1
    progress_sent_ms: int = 0
    progress_repeats: int = 0
    refusals: list[tuple[int, Refusal]] = []
    parked: tuple[str, bytes] | None = None
    keyset_asked_ms: int | None = None
    keyset_asks: int = 0
    metadata: Seen = NOTHING_SEEN


class State(msgspec.Struct, frozen=True):
    """The argument and the first result of :func:`device_agent.core.step.step`."""

    record: Record
    live: Live = Live()


def write_record(record: Record) -> bytes:
    """Return the record as it is stored."""
    return codec.encode_json(record)


def read_record(data: bytes) -> Record:
    """Return the record stored in these bytes, by this agent or by an older or newer one.

    What another agent wrote and this one cannot read (a phase or a reason it has no word for, a
    document of another form) is left out, and is learned anew; what runs must not be lost by it.

    Raises:
        Refused: ``malformed`` or ``too_large`` if it is no record at all.
    """
    try:
        return codec.decode_json(data, Record, limit_bytes=RECORD_BYTES)
    except Refused as refused:
        if refused.reason is Reason.TOO_LARGE:
            raise
    parts = codec.decode_json(data, dict, limit_bytes=RECORD_BYTES)
    models = parts.get("models")
    parts["models"] = {
        name: _readable(model, ModelState)
        for name, model in (models if isinstance(models, dict) else {}).items()
        if isinstance(model, dict)
    }
    try:
        return msgspec.convert(_readable(parts, Record), codec.prepared(Record))
    except msgspec.ValidationError as error:
        raise Refused(Reason.MALFORMED, f"not a record: {error}") from error


def _readable(parts: dict[str, Any], kind: type[msgspec.Struct]) -> dict[str, Any]:
    """Return those fields of a struct that can be read one by one."""
    found = {}
    for item in msgspec.structs.fields(kind):
        if item.name in parts:
            try:
                msgspec.convert(parts[item.name], item.type)
            except msgspec.ValidationError:
                continue
            found[item.name] = parts[item.name]
    return found
