"""A fleet authority that signs, and a toy shell that performs effects and can be killed."""

from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from device_agent.core import effects as do
from device_agent.core import events
from device_agent.core.events import Event
from device_agent.core.state import DISABLED, Record, State, read_record, write_record
from device_agent.core.step import step
from fleet_contract import bucket, codec, topics
from fleet_contract.errors import Reason
from fleet_contract.manifest import Capabilities, manifest_path
from fleet_contract.messages.progress import Phase, Progress, read_progress
from fleet_contract.messages.report import Ack
from fleet_contract.topics import DeviceChannel
from fleet_contract.trust import envelope
from fleet_contract.trust.directive import (
    ASSIGNMENT_TYPE,
    DIRECTIVE_TYPE,
    STOP_TYPE,
    Activation,
    Arm,
    Assignment,
    Directive,
    ReleaseRef,
    Starts,
    Stop,
)
from fleet_contract.trust.keyset import Keyset, PublicKey

START_MS = 1_700_000_000_000
FLEET, COHORT, DEVICE, MODEL = "home", "lab", "device-1", "digits"
CAPABILITIES = Capabilities({"onnxruntime": "1.31.1"}, "x86_64", 26, 13, 1 << 30)


def release(letter: str) -> ReleaseRef:
    digest = letter * 64
    return ReleaseRef(manifest_path(MODEL, digest), digest)


A, B, C = release("a"), release("b"), release("c")


def public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


@dataclass
class Authority:
    """Signs what a server would sign; every document gets the next epoch."""

    director: Ed25519PrivateKey = field(
        default_factory=lambda: Ed25519PrivateKey.from_private_bytes(b"\x01" * 32)
    )
    epoch: int = 100
    generation: int = 1

    def keyset(self) -> Keyset:
        raw = public(self.director)
        key = PublicKey(envelope.key_id(raw), raw.hex())
        return Keyset(FLEET, self.generation, 0, [key])

    def seal(self, kind: str, document: object) -> bytes:
        keyid = envelope.key_id(public(self.director))
        return envelope.seal(kind, codec.encode_json(document), {keyid: self.director.sign})

    def next_epoch(self) -> int:
        self.epoch += 1
        return self.epoch

    def directive(self, **changes: Any) -> bytes:
        fields: dict[str, Any] = {
            "fleet": FLEET,
            "cohort": COHORT,
            "model": MODEL,
            "generation": self.generation,
            "epoch": changes.get("epoch") or self.next_epoch(),
            "issued_ms": START_MS,
            "expires_ms": START_MS + 86_400_000,
            "rollout": "r1",
            "salt": "00" * 16,
            "default": A,
            "arms": [],
            "activation": Activation.ACTIVE,
            "starts": Starts.OPEN,
            "spread_ms": 0,
            "soak_ms": 1000,
            "report_every_ms": 5000,
            "retry": 0,
            "standby": A,
        }
        return self.seal(DIRECTIVE_TYPE, Directive(**{**fields, **changes}))

    def to_arm(self, target: ReleaseRef, **changes: Any) -> bytes:
        arm = Arm("all", bucket.write_bucket(0), bucket.write_bucket(bucket.LAST_BUCKET), target, 1)
        return self.directive(arms=[arm], **changes)

    def assignment(self, **changes: Any) -> bytes:
        fields: dict[str, Any] = {
            "fleet": FLEET,
            "device": DEVICE,
            "generation": self.generation,
            "epoch": self.next_epoch(),
            "issued_ms": START_MS,
            "cohort": COHORT,
            "labels": {},
            "pins": {},
            "blocks": {},
            "minimum_epochs": {},
        }
        return self.seal(ASSIGNMENT_TYPE, Assignment(**{**fields, **changes}))

    def stop(self, stopped: bool) -> bytes:
        return self.seal(
            STOP_TYPE, Stop(FLEET, self.generation, self.next_epoch(), START_MS, stopped, "")
        )


class Killed(Exception):
    """The toy process died."""


class Device:
    """Performs the core's effects at once on a toy disk; what is in ``slot`` dies with a kill."""

    def __init__(self, authority: Authority) -> None:
        self.authority = authority
        self.disk = write_record(Record(FLEET, DEVICE, authority.keyset()))
        self.files: set[str] = set()
        self.broken: dict[str, Reason] = {}
        self.retained: dict[str, bytes] = {}
        self.now_ms = START_MS
        self.performed: list[do.Effect] = []
        self.kill_after: int | None = None
        self.hold: set[type] = set()
        self.held: list[do.Effect] = []
        self.state = State(read_record(self.disk))
        self.running = ""
        self.standby = ""
        self.shadow = ""
        self.built: set[str] = set()
        self.progress: list[Progress] = []
        self.losing = 0
        self.uncertain = False
        self.proven: set[str] = set()
        self.ever_ran: set[str] = set()
        self.wake_ms: int | None = None

    # -- life ---------------------------------------------------------------------------------

    def boot(self) -> None:
        self.state = State(read_record(self.disk))
        self.running = self.standby = self.shadow = ""
        self.built = set()
        self.uncertain = False
        self.wake_ms = None
        self.feed(events.Booted(f"{self.state.record.boot + 1:016x}", "test", CAPABILITIES))

    def connect(self) -> None:
        self.feed(events.Connected())
        for topic, payload in list(self.retained.items()):
            self.feed(events.Received(topic, payload))

    def retain(self, topic: str, payload: bytes) -> None:
        self.retained[topic] = payload
        if self.state.live.connected:
            self.feed(events.Received(topic, payload))

    def direct(self, payload: bytes, cohort: str = COHORT) -> None:
        self.retain(topics.directive(FLEET, cohort, MODEL), payload)

    def assign(self, payload: bytes) -> None:
        self.retain(topics.device(FLEET, DEVICE, DeviceChannel.ASSIGNMENT), payload)

    def command_stop(self, payload: bytes) -> None:
        self.retain(topics.stop(FLEET), payload)

    def acknowledge(self) -> None:
        ack = Ack(self.state.live.session, self.progress[-1].sequence, [])
        topic = topics.device(FLEET, DEVICE, DeviceChannel.ACK)
        self.feed(events.Received(topic, codec.encode_msgpack(ack)))

    def wait(self, duration_ms: int) -> None:
        self.now_ms += duration_ms
        self.feed(events.Tick())

    def live(self, duration_ms: int) -> None:
        """Let time pass as the core's timers ask for it."""
        end_ms = self.now_ms + duration_ms
        ticks_at_once = 0
        while self.wake_ms is not None and self.wake_ms <= end_ms:
            ticks_at_once = ticks_at_once + 1 if self.wake_ms <= self.now_ms else 0
            assert ticks_at_once < 3, "the timer rings without anything coming of it"
            self.now_ms = max(self.now_ms, self.wake_ms)
            self.wake_ms = None
            self.feed(events.Tick())
        self.now_ms = end_ms

    # -- the shell ----------------------------------------------------------------------------

    def feed(self, *arrived: Event) -> None:
        queue = list(arrived)
        while queue:
            self.state, effects = step(self.state, queue.pop(0), self.now_ms)
            for effect in effects:
                queue.extend(self.answers(effect))

    def answers(self, effect: do.Effect) -> list[Event]:
        """Perform it; what should be answered may be lost on the way."""
        found = self.perform(effect)
        if found and self.losing and not isinstance(effect, do.Load | do.Subscribe):
            self.losing -= 1
            self.uncertain |= isinstance(found[0], events.Activated)
            return []
        if found and isinstance(found[0], events.Activated):
            self.uncertain = False
        return found

    def perform(self, effect: do.Effect) -> list[Event]:  # noqa: PLR0912 one case an effect
        if self.kill_after is not None:
            if self.kill_after == 0:
                self.kill_after = None
                raise Killed
            self.kill_after -= 1
        self.performed.append(effect)
        if type(effect) in self.hold:
            self.held.append(effect)
            return []
        match effect:
            case do.Persist(record):
                self.disk = write_record(record)
            case do.WakeAt(at_ms):
                self.wake_ms = at_ms
            case do.Subscribe([one]):
                # A single filter: another cohort's directives.
                known = list(self.retained.items())
                return [events.Received(t, p) for t, p in known if t.startswith(one[:-1])]
            case do.Load(_, active, standby):
                if self.state.record.models[MODEL].disabled:
                    self.running = DISABLED
                for ref in (active, standby):
                    if ref is not None and ref.digest in self.files:
                        self.built.add(ref.digest)
                if active is not None and active.digest not in self.built:
                    detail = "not in the store"
                    return [events.Failed(MODEL, active.digest, Reason.BROKEN_MODEL, detail)]
                if active is not None:
                    self.running = active.digest
                if standby is not None and standby.digest in self.built:
                    self.standby = standby.digest
            case do.Fetch(model, ref):
                reason = self.broken.get(ref.digest)
                if reason in (Reason.DOWNLOAD_FAILED, Reason.BAD_SIGNATURE):
                    return [events.Failed(model, ref.digest, reason, "as told")]
                self.files.add(ref.digest)
                return [events.Fetched(model, ref.digest, ref.manifest, "1.0.0", 1)]
            case do.Probe(model, ref):
                reason = self.broken.get(ref.digest)
                if reason is not None and reason is not Reason.ACTIVATION_FAILED:
                    return [events.Failed(model, ref.digest, reason, "as told")]
                if ref.digest not in self.files:
                    detail = "not in the store"
                    return [events.Failed(model, ref.digest, Reason.WRONG_HASH, detail)]
                self.built.add(ref.digest)
                self.proven.add(ref.digest)
                return [events.Probed(model, ref.digest)]
            case do.Activate(model, ref):
                reason = self.broken.get(ref.digest)
                if reason is Reason.ACTIVATION_FAILED:
                    return [events.Failed(model, ref.digest, reason, "as told")]
                if ref.digest not in self.files:
                    detail = "not in the store"
                    return [events.Failed(model, ref.digest, Reason.ACTIVATION_FAILED, detail)]
                if ref.digest not in self.built:
                    detail = "not built"
                    return [events.Failed(model, ref.digest, Reason.ACTIVATION_FAILED, detail)]
                self.ever_ran.add(ref.digest)
                if self.running != ref.digest:
                    before = self.running if self.running != DISABLED else self.standby
                    self.running, self.standby = ref.digest, before
                return [events.Activated(model, ref.digest)]
            case do.Disable(model):
                self.running, self.standby = DISABLED, self.running
                return [events.Activated(model, DISABLED)]
            case do.DropStandby():
                self.built.discard(self.standby)
                self.standby = ""
            case do.StartShadow(_, ref):
                assert ref.digest in self.built
                self.shadow = ref.digest
            case do.StopShadow():
                self.shadow = ""
            case do.Discard(_, digest):
                assert digest not in (self.running, self.standby)
                self.files.discard(digest)
            case do.Publish(topic, payload, _) if topic.endswith("/progress"):
                self.progress.append(read_progress(payload))
        return []

    def catch_up(self) -> None:
        """Perform what was held back, in order, and only then tell the core of it."""
        self.hold = set()
        held, self.held = self.held, []
        self.feed(*(event for effect in held for event in self.perform(effect)))

    # -- what it looks like -------------------------------------------------------------------

    @property
    def phase(self) -> Phase:
        return self.state.record.models[MODEL].phase

    @property
    def reason(self) -> Reason | None:
        return self.state.record.models[MODEL].reason

    def is_in(self, phase: Phase) -> bool:
        return self.phase is phase

    def effects_of(self, kind: type) -> list[Any]:
        return [effect for effect in self.performed if isinstance(effect, kind)]

    def refusals(self) -> list[Reason]:
        return [refusal.reason for _, refusal in self.state.live.refusals]


def connected(authority: Authority) -> Device:
    device = Device(authority)
    device.boot()
    device.retained[topics.stop(FLEET)] = authority.stop(False)
    device.retained[topics.device(FLEET, DEVICE, DeviceChannel.ASSIGNMENT)] = authority.assignment()
    device.connect()
    return device
