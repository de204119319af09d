"""A device of the world: the real agent core, with a shell in virtual time.

Decides how long effects take and what a device would count; every decision about releases is the
core's. The disk is a dictionary, and the record goes through the same bytes as on a real device.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from device_agent.core import effects as do
from device_agent.core import events
from device_agent.core.events import Event
from device_agent.core.outbox import Outbox
from device_agent.core.state import DISABLED, Record, State, read_record, write_record
from device_agent.core.step import step
from fleet_contract import topics
from fleet_contract.errors import Reason
from fleet_contract.manifest import Capabilities
from fleet_contract.messages.report import Pairs, Role, Window
from fleet_contract.trust.directive import ReleaseRef
from fleet_server.broker.packets import Connect, Will
from simulator.world.behaviour import SCHEMA_DIGEST, Behaviour, Place, Profile
from simulator.world.kernel import Kernel, Timer
from simulator.world.network import Link, Network

CAPABILITIES = Capabilities({"onnxruntime": "1.31.1"}, "virtual", 26, 13, 1 << 30)
CALLS_PER_MINUTE = 60


@dataclass(frozen=True)
class Release:
    """A release as the world knows it."""

    ref: ReleaseRef
    version: str
    counter: int
    profile: Profile


@dataclass
class Counts:
    """What all devices together went through; failed inferences are those without any model."""

    activations: int = 0
    fetches: int = 0
    predictions: int = 0
    without_model: int = 0
    running: dict[str, str] = field(default_factory=dict)


class VirtualDevice:
    """One device: core, disk, slot and telemetry."""

    def __init__(
        self,
        record: Record,
        *,
        kernel: Kernel,
        network: Network,
        releases: Mapping[str, Release],
        chance: random.Random,
        numbers: np.random.Generator,
        counts: Counts,
    ) -> None:
        self.name = record.device
        self._kernel = kernel
        self._network = network
        self._releases = releases
        self._chance = chance
        self._numbers = numbers
        self._place = Place(numbers)
        self._counts = counts
        self._disk = write_record(record)
        self._state = State(record)
        self._files: set[str] = set()
        self._running: dict[str, str] = {}
        self._shadow: dict[str, str] = {}
        self._behaviours: dict[str, Behaviour] = {}
        self._outbox = Outbox()
        self._link: Link | None = None
        self._wake: Timer | None = None
        self._every_ms: dict[str, int] = {}
        self._window_ms: dict[str, int] = {}

    def boot(self) -> None:
        """Start the agent: read the record, and forget everything else."""
        self._state = State(read_record(self._disk))
        session = f"{self._chance.getrandbits(64):016x}"
        self._feed(events.Booted(session, "virtual", CAPABILITIES))

    # -- the end of a link --------------------------------------------------------------------

    def connected(self) -> None:
        """The broker accepted the connection."""
        self._feed(events.Connected())

    def message(self, topic: str, payload: bytes) -> None:
        """A control message or an acknowledgement arrived."""
        self._feed(events.Received(topic, payload))

    def closed(self) -> None:
        """The connection is gone."""
        self._link = None
        self._feed(events.Disconnected())

    # -- effects ------------------------------------------------------------------------------

    def _feed(self, event: Event) -> None:
        self._state, effects = step(self._state, event, self._kernel.now_ms)
        for effect in effects:
            self._perform(effect)

    def _later(self, mean_ms: int, event: Event) -> None:
        delay_ms = 1 + int(self._chance.expovariate(1 / mean_ms))
        self._kernel.after(delay_ms, lambda: self._feed(event))

    def _perform(self, effect: do.Effect) -> None:  # noqa: PLR0912 one case an effect
        match effect:
            case do.Persist(record):
                self._disk = write_record(record)
            case do.Connect(topic, payload):
                self._kernel.after(
                    self._chance.randrange(5_000), lambda: self._connect(topic, payload)
                )
            case do.Subscribe(filters) if self._link is not None:
                self._link.subscribe(*filters)
            case do.Unsubscribe(filters) if self._link is not None:
                self._link.unsubscribe(*filters)
            case do.Publish(topic, payload, retain) if self._link is not None:
                self._link.publish(topic, payload, retain=retain)
            case do.Load(model, active, _) if active is not None:
                self._run(model, active.digest)
            case do.Fetch(model, ref):
                self._counts.fetches += 1
                self._later(800, self._fetch(model, ref))
            case do.Probe(model, ref):
                self._later(200, events.Probed(model, ref.digest))
            case do.Activate(model, ref):
                self._run(model, ref.digest)
                self._later(5, events.Activated(model, ref.digest))
            case do.Disable(model):
                self._run(model, DISABLED)
                self._later(5, events.Activated(model, DISABLED))
            case do.StartShadow(model, ref):
                self._close_window(model)
                self._shadow[model] = ref.digest
            case do.StopShadow(model):
                self._close_window(model)
                self._shadow.pop(model, None)
            case do.Discard(_, digest):
                self._files.discard(digest)
            case do.ReportEvery(model, every_ms):
                self._report_every(model, every_ms)
            case do.Acknowledged(ack):
                self._outbox.acknowledge(ack)
            case do.WakeAt(at_ms):
                if self._wake is not None:
                    self._wake.cancel()
                self._wake = self._kernel.at(at_ms, lambda: self._feed(events.Tick()))

    def _connect(self, topic: str, payload: bytes) -> None:
        will = Will(topic, payload, qos=1, retain=True)
        self._link = self._network.connect(self, Connect(client_id=self.name, will=will))

    def _fetch(self, model: str, ref: ReleaseRef) -> Event:
        release = self._releases.get(ref.digest)
        if release is None:
            return events.Failed(model, ref.digest, Reason.DOWNLOAD_FAILED, "no such manifest")
        self._files.add(ref.digest)
        return events.Fetched(model, ref.digest, ref.manifest, release.version, release.counter)

    def _run(self, model: str, digest: str) -> None:
        self._close_window(model)
        self._running[model] = digest
        self._counts.activations += 1
        self._counts.running[self.name] = digest

    # -- telemetry ----------------------------------------------------------------------------

    def _report_every(self, model: str, every_ms: int) -> None:
        if self._every_ms.get(model) == every_ms:
            return
        first = model not in self._every_ms
        self._every_ms[model] = every_ms
        self._window_ms.setdefault(model, self._kernel.now_ms)
        if first:
            # Devices do not report in step.
            self._kernel.after(self._chance.randrange(every_ms), lambda: self._report(model))

    def _report(self, model: str) -> None:
        self._close_window(model)
        if self._link is not None and self._link.open:
            for message_model, payload in self._outbox.messages():
                topic = topics.report(self._state.record.fleet, self.name, message_model)
                self._link.publish(topic, payload)
        self._kernel.after(self._every_ms[model], lambda: self._report(model))

    def _close_window(self, model: str) -> None:
        start_ms = self._window_ms.get(model)
        if start_ms is None:
            return
        length_ms = self._kernel.now_ms - start_ms
        self._window_ms[model] = self._kernel.now_ms
        calls = int(self._numbers.poisson(CALLS_PER_MINUTE * length_ms / 60_000))
        if not calls:
            return
        self._counts.predictions += calls
        digest = self._running.get(model)
        if digest is None or digest == DISABLED:
            had_one = self._state.record.models[model].active is not None
            self._counts.without_model += calls if digest is None and had_one else 0
            return
        self._put(model, digest, Role.ACTIVE, start_ms, length_ms, calls)
        shadow = self._shadow.get(model)
        if shadow is not None:
            self._put(model, shadow, Role.SHADOW, start_ms, length_ms, calls)

    def _put(
        self, model: str, digest: str, role: Role, start_ms: int, length_ms: int, calls: int
    ) -> None:
        behaviour = self._behaviours.get(digest)
        if behaviour is None:
            profile = self._releases[digest].profile
            behaviour = Behaviour(profile, self._place, self._numbers)
            self._behaviours[digest] = behaviour
        errors, outputs, latencies = behaviour.draw(calls)
        rows = calls - errors
        pairs = None
        if role is Role.SHADOW:
            pairs = Pairs(rows, behaviour.agreements(rows), rows // 2)
        window = Window(
            release=digest,
            role=role,
            start_ms=start_ms,
            length_ms=length_ms,
            sequence=0,
            closed=True,
            predictions=calls,
            errors=errors,
            latency=latencies,
            schema=SCHEMA_DIGEST,
            inputs=None,
            outputs=outputs,
            pairs=pairs,
        )
        self._outbox.add(model, self._state.live.session, window)
