"""A handful of devices in one thread: the real agent core and outbox over real MQTT, no models.

The shell here fetches, probes and activates at once. What a release does is in
:class:`Behaviour`; it is the same on every device and in every window, so that no verdict of a
gate is a matter of luck. Every prediction is counted here, to be compared with what the server has.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import msgspec
import numpy as np

from device_agent.core import effects as do
from device_agent.core import events
from device_agent.core.outbox import Outbox
from device_agent.core.state import Record, State, read_record, write_record
from device_agent.core.step import step
from fleet_contract import topics
from fleet_contract.errors import Reason
from fleet_contract.manifest import Capabilities
from fleet_contract.messages.report import Pairs, Role, Window
from fleet_contract.sketches.latency import LatencySketch
from fleet_contract.sketches.numeric import BINS
from fleet_contract.trust.directive import ReleaseRef
from fleet_server.broker.client import MqttClient
from fleet_server.broker.errors import BrokerError
from fleet_server.broker.packets import Publish, SubscriptionRequest, Will
from simulator.world.behaviour import CLASSES, SCHEMA_DIGEST, outputs_of

CAPABILITIES = Capabilities({"onnxruntime": "1.31.1"}, "virtual", 26, 13, 1 << 30)
CALLS = 20
"""Predictions between two reports: two in each of the ten classes."""
RECONNECT_S = 0.1


@dataclass(frozen=True)
class Behaviour:
    """A release as devices know it; every second call fails if it is ``broken``."""

    ref: ReleaseRef
    version: str
    counter: int
    broken: bool = False


@dataclass
class LightDevice:
    """One device: its record on a disk that survives, its connection, and its counts."""

    record: Record
    tls: ssl.SSLContext | None
    host: str
    port: int
    releases: Mapping[str, Behaviour]
    chance: random.Random
    counted: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(release, role) → predictions."""
    unanswered: int = 0
    epochs: list[int] = field(default_factory=list)
    """Of the directives accepted, in order."""

    def __post_init__(self) -> None:
        self.name = self.record.device
        self.state = State(self.record)
        self.outbox = Outbox()
        self._disk = write_record(self.record)
        self._client: MqttClient | None = None
        self._running: dict[str, str] = {}
        self._shadow: dict[str, str] = {}
        self._open: dict[tuple[str, Role], Window] = {}
        self._every_ms: dict[str, int] = {}
        self._began_ms = 0
        self._ended = False
        self._wake: asyncio.TimerHandle | None = None
        self._work: set[asyncio.Task[None]] = set()

    def boot(self) -> None:
        """Start the agent: read the record, and forget everything else."""
        self.state = State(read_record(self._disk))
        self._feed(events.Booted(f"{self.chance.getrandbits(64):016x}", "light", CAPABILITIES))

    async def end(self) -> None:
        self._ended = True
        for task in self._work:
            task.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)
        if self._wake is not None:
            self._wake.cancel()
        if self._client is not None:
            self._client.drop()

    def finish_windows(self) -> None:
        """Close what is open: nothing is predicted any more."""
        self._every_ms.clear()
        for model, role in list(self._open):
            self._close(model, role)
        self.report()

    def report(self) -> None:
        for model, payload in self.outbox.messages():
            self._publish(topics.report(self.state.record.fleet, self.name, model), payload)

    # -- effects ------------------------------------------------------------------------------

    def _feed(self, event: events.Event) -> None:
        before = self.state
        self.state, effects = step(before, event, time.time_ns() // 1_000_000)
        for model in self.state.record.models.values():
            epoch = model.directive.epoch if model.directive is not None else 0
            if epoch and epoch not in self.epochs[-1:]:
                self.epochs.append(epoch)
        for effect in effects:
            self._perform(effect)

    def _soon(self, event: events.Event) -> None:
        asyncio.get_running_loop().call_soon(self._feed, event)

    def _perform(self, effect: do.Effect) -> None:  # noqa: PLR0912 one case an effect
        match effect:
            case do.Persist(record):
                self._disk = write_record(record)
            case do.Connect(topic, payload):
                self._start(self._connect(Will(topic, payload, qos=1, retain=True)))
            case do.Subscribe(filters) if self._client is not None:
                wanted = tuple(SubscriptionRequest(name, 1) for name in filters)
                self._start(self._client.subscribe(*wanted))
            case do.Unsubscribe(filters) if self._client is not None:
                self._start(self._client.unsubscribe(*filters))
            case do.Publish(topic, payload, retain):
                self._publish(topic, payload, retain=retain)
            case do.Load(model, active, _) if active is not None:
                self._run(model, active.digest)
            case do.Fetch(model, ref):
                self._soon(self._fetch(model, ref))
            case do.Probe(model, ref):
                self._soon(events.Probed(model, ref.digest))
            case do.Activate(model, ref):
                self._run(model, ref.digest)
                self._soon(events.Activated(model, ref.digest))
            case do.StartShadow(model, ref):
                self._shadow[model] = ref.digest
            case do.StopShadow(model):
                self._close(model, Role.SHADOW)
                self._shadow.pop(model, None)
            case do.ReportEvery(model, every_ms):
                first = model not in self._every_ms
                self._every_ms[model] = every_ms
                if first:
                    self._start(self._predict(model))
            case do.Acknowledged(ack):
                self.outbox.acknowledge(ack)
            case do.WakeAt(at_ms):
                if self._wake is not None:
                    self._wake.cancel()
                wait_s = max(0.0, at_ms / 1000 - time.time())
                self._wake = asyncio.get_running_loop().call_later(
                    wait_s, self._feed, events.Tick()
                )

    def _start(self, work: Coroutine[Any, Any, Any]) -> None:
        async def tolerant() -> None:
            # A connection that broke: its end is an event of its own.
            with suppress(BrokerError):
                await work

        if self._ended:
            work.close()
            return
        task = asyncio.get_running_loop().create_task(tolerant())
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    async def _connect(self, will: Will) -> None:
        await asyncio.sleep(self.chance.uniform(0.2, 1.0) * RECONNECT_S)

        def ended(_reason: object) -> None:
            self._client = None
            self._feed(events.Disconnected())

        client = MqttClient(
            self.name,
            on_message=self._received,
            on_end=ended,
            keep_alive_s=10,
            will=will,
        )
        try:
            await client.connect(self.host, self.port, tls=self.tls, timeout_s=5.0)
        except (OSError, TimeoutError, BrokerError):
            self._feed(events.Disconnected())
            return
        self._client = client
        self._feed(events.Connected())

    def _received(self, message: Publish) -> None:
        self._feed(events.Received(message.topic, message.payload))

    def _publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        if self._client is not None and self._client.connected:
            self._start(self._client.publish(topic, payload, retain=retain))

    def _fetch(self, model: str, ref: ReleaseRef) -> events.Event:
        release = self.releases.get(ref.digest)
        if release is None:
            return events.Failed(model, ref.digest, Reason.DOWNLOAD_FAILED, "no such manifest")
        return events.Fetched(model, ref.digest, ref.manifest, release.version, release.counter)

    def _run(self, model: str, digest: str) -> None:
        self._close(model, Role.ACTIVE)
        self._running[model] = digest

    # -- predictions --------------------------------------------------------------------------

    async def _predict(self, model: str) -> None:
        """Predict for ever; each window is reported twice: half full, then whole and closed."""
        await asyncio.sleep(self.chance.random() * self._every_ms[model] / 1000)
        half = 0
        while model in self._every_ms:
            digest = self._running.get(model)
            if digest is None:
                self.unanswered += self.state.record.models[model].active is not None
            else:
                self._count(model, Role.ACTIVE, digest)
                if model in self._shadow:
                    self._count(model, Role.SHADOW, self._shadow[model])
            half = 1 - half
            if not half:
                for role in Role:
                    self._close(model, role)
            self.report()
            await asyncio.sleep(self._every_ms.get(model, 0) / 2000)

    def _count(self, model: str, role: Role, digest: str) -> None:
        self.counted[digest, role.value] += CALLS
        opened = self._open.get((model, role))
        if opened is not None and opened.release != digest:
            self._close(model, role)
            opened = None
        calls = CALLS + (opened.predictions if opened is not None else 0)
        now_ms = time.time_ns() // 1_000_000
        if opened is None:
            # No two windows of a release begin in the same millisecond: that is their name.
            self._began_ms = max(now_ms, self._began_ms + 1)
        start_ms = opened.start_ms if opened is not None else self._began_ms
        errors = calls // 2 if self.releases[digest].broken else 0
        rows = calls - errors
        window = Window(
            release=digest,
            role=role,
            start_ms=start_ms,
            length_ms=max(0, now_ms - start_ms),
            sequence=opened.sequence + 1 if opened is not None else 0,
            closed=False,
            predictions=calls,
            errors=errors,
            latency=LatencySketch(rows * 2, 1, [rows]),
            schema=SCHEMA_DIGEST,
            inputs=None,
            outputs=outputs(rows),
            pairs=Pairs(rows, rows, 0) if role is Role.SHADOW else None,
        )
        self._open[model, role] = window
        self.outbox.add(model, self.state.live.session, window)

    def _close(self, model: str, role: Role) -> None:
        window = self._open.pop((model, role), None)
        if window is not None:
            closed = msgspec.structs.replace(window, sequence=window.sequence + 1, closed=True)
            self.outbox.add(model, self.state.live.session, closed)


def outputs(rows: int) -> Any:
    """Every class as often as any other, all with the same confidence."""
    classes = np.full(CLASSES, rows // CLASSES, dtype=np.int64)
    bins = np.zeros(BINS, dtype=np.int64)
    bins[28] = rows
    return outputs_of(classes, bins)


class LightFleet:
    """Devices on an event loop of their own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.devices: list[LightDevice] = []

    def add(
        self,
        records: Iterable[tuple[Record, ssl.SSLContext | None]],
        broker_url: str,
        releases: Mapping[str, Behaviour],
    ) -> None:
        broker = urlsplit(broker_url)
        assert broker.hostname is not None
        assert broker.port is not None
        for record, tls in records:
            chance = random.Random(record.device)
            device = LightDevice(record, tls, broker.hostname, broker.port, releases, chance)
            self.devices.append(device)
            self.call(device.boot)

    def call(self, work: Callable[[], Any]) -> Any:
        """Run something on the devices' thread and return its result."""

        async def run() -> Any:
            result = work()
            return await result if asyncio.iscoroutine(result) else result

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(60)

    def active(self, model: str) -> dict[str, str]:
        """Device → the digest that answers."""
        return {
            device.name: device.state.record.models[model].active_digest
            for device in self.devices
            if model in device.state.record.models
        }

    def close(self) -> None:
        for device in self.devices:
            self.call(device.end)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)
        self._loop.close()
