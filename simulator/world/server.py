"""The server's side of the world: what the controller, publisher and ingest do, without a database.

Decides nothing about rollouts: snapshots are built, judged and turned into directives by the same
pure functions as in the real server. Here is only the memory they need, and a link to the broker.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fleet_contract import codec, topics
from fleet_contract.errors import ContractError
from fleet_contract.messages.presence import read_presence
from fleet_contract.messages.progress import ModelProgress, Progress, read_progress
from fleet_contract.messages.report import Ack, Window, WindowAck, read_report
from fleet_contract.topics import DeviceChannel
from fleet_contract.trust import envelope
from fleet_contract.trust.directive import (
    ASSIGNMENT_TYPE,
    DIRECTIVE_TYPE,
    STOP_TYPE,
    Assignment,
    Stop,
)
from fleet_contract.trust.keyset import Keyset, PublicKey
from fleet_server.broker.packets import Connect
from fleet_server.rollouts import directives
from fleet_server.rollouts.decide import Decision, Kind, decide
from fleet_server.rollouts.plan import RolloutPlan, StageKind, first_release
from fleet_server.rollouts.snapshot import (
    ReleaseFacts,
    RolloutFacts,
    StageFacts,
    build,
    look_due,
)
from fleet_server.rollouts.states import Action, RolloutState, advance
from simulator.world.kernel import Kernel
from simulator.world.network import Link, Network

GENERATION = 1
CONTROLLER_INTERVAL_MS = 10_000

_HEARD = (DeviceChannel.PRESENCE, DeviceChannel.PROGRESS, DeviceChannel.REPORT)

_ACTIONS = {
    Kind.START_STAGE: Action.BEGIN,
    Kind.COMPLETE: Action.FINISH,
    Kind.ROLL_BACK: Action.ROLL_BACK,
    Kind.HOLD: Action.HOLD,
    Kind.CONFIRM_ROLLBACK: Action.CONFIRM,
}


@dataclass
class View:
    """What the server knows of a device."""

    name: str
    online: bool = False
    birth: int = -1
    progress: dict[str, ModelProgress] = field(default_factory=dict)
    newest: tuple[int, int] = (-1, -1)
    first_running_ms: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Received:
    """A window, and when the server heard of it first."""

    device: str
    received_ms: int
    window: Window


@dataclass
class Course:
    """A rollout on its way, and every decision that moved it."""

    facts: RolloutFacts
    plan: RolloutPlan
    members: Mapping[str, bool]
    stage: StageFacts | None = None
    decisions: list[Decision] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        """Say whether there is nothing left to decide."""
        return self.facts.state in (RolloutState.COMPLETED, RolloutState.ROLLED_BACK)


class VirtualServer:
    """Signs, publishes, takes reports in and decides."""

    def __init__(
        self, kernel: Kernel, network: Network, *, fleet: str, cohort: str, key: bytes
    ) -> None:
        self._kernel = kernel
        self._network = network
        self.fleet = fleet
        self.cohort = cohort
        self._director = Ed25519PrivateKey.from_private_bytes(key)
        self._epoch = 0
        self._retry = 0
        self.views: dict[str, View] = {}
        self._windows: dict[str, dict[tuple[str, str, str, str, int], Received]] = {}
        self._last_report_ms: dict[str, dict[str, int]] = {}
        self.stable: dict[str, ReleaseFacts] = {}
        self.course: Course | None = None
        self.windows_counted = 0
        self._link: Link = network.connect(self, Connect(client_id="server"))

    # -- trust --------------------------------------------------------------------------------

    @property
    def public_key(self) -> bytes:
        """Return the director's raw public key."""
        return self._director.public_key().public_bytes_raw()

    def keyset(self) -> Keyset:
        """Return the keyset that devices of this world believe from the start."""
        raw = self.public_key
        key = PublicKey(envelope.key_id(raw), raw.hex())
        return Keyset(self.fleet, GENERATION, 0, [key])

    def _seal(self, kind: str, document: object) -> bytes:
        signers = {envelope.key_id(self.public_key): self._director.sign}
        return envelope.seal(kind, codec.encode_json(document), signers)

    def _next_epoch(self) -> int:
        self._epoch = max(self._epoch + 1, self._kernel.now_ms)
        return self._epoch

    # -- the end of the link ------------------------------------------------------------------

    def connected(self) -> None:
        """The broker accepted the connection: listen to every device, and lift the stop."""
        self._link.subscribe(*(topics.device_filter(self.fleet, channel) for channel in _HEARD))
        stop = Stop(self.fleet, GENERATION, self._next_epoch(), self._kernel.now_ms, False, "")
        self._link.publish(topics.stop(self.fleet), self._seal(STOP_TYPE, stop), retain=True)
        self._kernel.after(CONTROLLER_INTERVAL_MS, self._control)

    def closed(self) -> None:
        """The broker of this world outlives its server's link; nothing to do."""

    def enrol(self, device: str) -> None:
        """Take a device into the fleet and write its assignment."""
        self.views[device] = View(device)
        assignment = Assignment(
            fleet=self.fleet,
            device=device,
            generation=GENERATION,
            epoch=self._next_epoch(),
            issued_ms=self._kernel.now_ms,
            cohort=self.cohort,
            labels={},
            pins={},
            blocks={},
            minimum_epochs={},
        )
        topic = topics.device(self.fleet, device, DeviceChannel.ASSIGNMENT)
        self._link.publish(topic, self._seal(ASSIGNMENT_TYPE, assignment), retain=True)

    def message(self, topic: str, payload: bytes) -> None:
        """Take in what a device says."""
        try:
            where = topics.read_device(topic)
            view = self.views[where.device]
            if where.channel is DeviceChannel.PRESENCE:
                presence = read_presence(payload)
                if presence.birth >= view.birth:
                    view.online, view.birth = presence.online, presence.birth
            elif where.channel is DeviceChannel.PROGRESS:
                self._progress(view, read_progress(payload))
            elif where.channel is DeviceChannel.REPORT:
                self._report(where.device, where.model, payload)
        except ContractError as error:
            self._kernel.note("refused", topic, str(error))

    def _progress(self, view: View, progress: Progress) -> None:
        newest = (progress.boot, progress.sequence)
        if newest > view.newest:
            view.newest = newest
            view.progress = {item.model: item for item in progress.models}
            for item in progress.models:
                view.first_running_ms.setdefault(f"{item.model}/{item.active}", item.changed_ms)
            self._kernel.note(
                "progress", view.name, [(item.phase, item.active) for item in progress.models]
            )
        self._acknowledge(view.name, Ack(progress.session, progress.sequence, []))

    def _report(self, device: str, model: str, payload: bytes) -> None:
        report = read_report(payload)
        windows = self._windows.setdefault(model, {})
        acks = []
        for window in report.windows:
            key = (device, report.session, window.release, window.role.value, window.start_ms)
            held = windows.get(key)
            if held is None or window.sequence > held.window.sequence:
                first_ms = held.received_ms if held is not None else self._kernel.now_ms
                windows[key] = Received(device, first_ms, window)
                self.windows_counted += 1
            acks.append(
                WindowAck(model, window.release, window.role, window.start_ms, window.sequence)
            )
        self._last_report_ms.setdefault(model, {})[device] = self._kernel.now_ms
        self._acknowledge(device, Ack(report.session, -1, acks))

    def _acknowledge(self, device: str, ack: Ack) -> None:
        topic = topics.device(self.fleet, device, DeviceChannel.ACK)
        self._link.publish(topic, codec.encode_msgpack(ack))

    # -- rollouts -----------------------------------------------------------------------------

    def start(
        self, number: int, model: str, release: ReleaseFacts, plan: RolloutPlan, salt: str
    ) -> Course:
        """Start a rollout of a release to the whole cohort."""
        stable = self.stable.get(model)
        facts = RolloutFacts(
            id=f"rollout-{number}",
            fleet=self.fleet,
            cohort=self.cohort,
            model=model,
            state=RolloutState.SCHEDULED,
            salt=salt,
            candidate=release,
            stable=stable,
            started_ms=self._kernel.now_ms,
            exposed_ms=0,
        )
        self._retry += 1
        members = {name: view.online for name, view in self.views.items()}
        self.course = Course(facts, plan if stable is not None else first_release(plan), members)
        return self.course

    def _control(self) -> None:
        self._kernel.after(CONTROLLER_INTERVAL_MS, self._control)
        course = self.course
        if course is None or course.ended:
            return
        model = course.facts.model
        judged = look_due(course.plan, course.stage, self._kernel.now_ms) > 0
        snapshot = build(
            course.facts,
            course.plan,
            course.stage,
            members=course.members,
            devices=self.views.values(),
            windows=self._recent(model, course) if judged else (),
            last_report_ms=self._last_report_ms.get(model, {}),
            now_ms=self._kernel.now_ms,
        )
        self._apply(course, decide(snapshot))

    def _recent(self, model: str, course: Course) -> Iterable[Received]:
        oldest_ms = course.facts.started_ms - course.plan.lookback_ms
        return (
            item for item in self._windows.get(model, {}).values() if item.received_ms >= oldest_ms
        )

    def _apply(self, course: Course, decision: Decision) -> None:
        course.stage = decision.stage
        if decision.kind is Kind.WAIT:
            return
        course.decisions.append(decision)
        epoch = self._next_epoch()
        facts = course.facts
        action = _ACTIONS.get(decision.kind)
        if action is not None:
            facts = replace(facts, state=advance(facts.state, action))
        if decision.kind is Kind.ROLL_BACK:
            facts = replace(facts, rollback_epoch=epoch)
        if decision.kind is Kind.COMPLETE:
            self.stable[facts.model] = facts.candidate
        stage = decision.stage
        answers = stage is not None and (
            course.plan.stages[stage.index].kind is not StageKind.SHADOW
        )
        if answers and not facts.exposed_ms:
            facts = replace(facts, exposed_ms=self._kernel.now_ms)
        course.facts = facts
        self._kernel.note("decision", facts.id, decision.kind, decision.reason)
        if decision.kind is not Kind.CONFIRM_ROLLBACK:
            self._direct(course, epoch)

    def _direct(self, course: Course, epoch: int) -> None:
        stamp = directives.Stamp(GENERATION, epoch, self._kernel.now_ms)
        directive = directives.build(
            course.facts, course.plan, course.stage, retry=self._retry, stamp=stamp
        )
        topic = topics.directive(self.fleet, self.cohort, course.facts.model)
        self._link.publish(topic, self._seal(DIRECTIVE_TYPE, directive), retain=True)
