"""From a rollback's decision to the last of a thousand devices, against the bare broker.

What is measured is what a rollback does: a signed directive becomes a row in a transaction, the
publisher reads it and publishes it, the broker fans it out. The reference is the same bytes through
the same broker to the same connections, published by a client that has them at hand. The devices
are connections of the lean client in a process of their own; both processes read one clock.
"""

from __future__ import annotations

import asyncio
import hashlib
import multiprocessing
import statistics
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec

from fleet_contract import topics
from fleet_contract.trust import checks
from fleet_contract.trust.directive import Activation, Arm, Directive, ReleaseRef, Starts
from fleet_contract.trust.keyset import read_keyset
from fleet_server.broker.choice import Broker, choose
from fleet_server.broker.client import MqttClient
from fleet_server.broker.mosquitto import find_mosquitto
from fleet_server.broker.packets import Publish, SubscriptionRequest
from fleet_server.clock import SystemClock
from fleet_server.database import Database
from fleet_server.dispatch import service as dispatch
from fleet_server.dispatch.connection import BrokerAddress
from fleet_server.dispatch.publisher import Publisher
from fleet_server.trust.keyring import Keyring, open_keyring
from tests.benchmarks.measurement import Measurement

DEVICES = 1_000
ROUNDS = 21
WARM_UP = 3
PAUSE_S = 0.03
"""Between two rounds: acknowledgements of the one before are not part of the next."""
CHECKS = 500
TIMEOUT_S = 60.0
FLEET, COHORT, MODEL = "home", "lab", "detector"
BARE_TOPIC = "bench/bare"
"""Outside of the control topics: the publisher would clear what nobody asked for."""


def run() -> list[Measurement]:
    found = []
    for name in ("mosquitto", "embedded"):
        if name == "mosquitto" and find_mosquitto() is None:
            print("bench: broadcast through Mosquitto left out: NOT INSTALLED (make services)")
            continue
        with tempfile.TemporaryDirectory() as folder:
            found += _measure(name, Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        keyring = _keyring(Path(folder))
        found.append(Measurement("broadcast.check_on_device", _check_us(keyring), "us"))
    return found


def _measure(name: str, folder: Path) -> list[Measurement]:
    loop = _Loop()
    broker = choose(name, folder=folder / "broker", clock=SystemClock().monotonic_ms)
    loop.call(broker.start())
    try:
        return _measure_on(name, broker, loop, folder)
    finally:
        loop.call(broker.stop())
        loop.close()


def _measure_on(name: str, broker: Broker, loop: _Loop, folder: Path) -> list[Measurement]:
    address = BrokerAddress.parse(broker.url)
    server = _Server(folder, address)
    fleet = _Fleet(address)
    bare = MqttClient("bare")
    loop.call(bare.connect(address.host, address.port))
    decided_ms, bare_ms = [], []
    try:
        for round_number in range(WARM_UP + ROUNDS):
            directive = server.next_directive()
            began_ns = time.monotonic_ns()
            payload = server.roll_back(directive)
            decided = fleet.last_ns(server.topic, payload) - began_ns
            time.sleep(PAUSE_S)
            began_ns = time.monotonic_ns()
            loop.call(bare.publish(BARE_TOPIC, payload, retain=True))
            fanned_out = fleet.last_ns(BARE_TOPIC, payload) - began_ns
            time.sleep(PAUSE_S)
            if round_number >= WARM_UP:
                decided_ms.append(decided / 1e6)
                bare_ms.append(fanned_out / 1e6)
    finally:
        loop.call(bare.disconnect())
        fleet.close()
        server.close()
    decision, reference = statistics.median(decided_ms), statistics.median(bare_ms)
    return [
        Measurement(
            f"broadcast.{name}", decision, "ms", "bare fan-out", reference, largest_ratio=1.5
        ),
        # Devices act within their check of it, which is measured apart.
        Measurement(f"broadcast.{name}.slowest", max(decided_ms), "ms", largest_value=1_000),
    ]


class _Loop:
    """An event loop on a thread of its own, as the server's is beside its workers."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, Any]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(TIMEOUT_S)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class _Server:
    """The parts of the server between a decision and the broker."""

    def __init__(self, folder: Path, address: BrokerAddress) -> None:
        self._clock = SystemClock()
        self._keyring = _keyring(folder)
        self._database = Database(f"sqlite:///{folder / 'fleet.sqlite'}")
        self._database.migrate()
        self._publisher = Publisher(self._database, FLEET, address, self._clock)
        self._publisher.start()
        self.topic = topics.directive(FLEET, COHORT, MODEL)
        deadline = time.monotonic() + TIMEOUT_S
        while not self._publisher.ready:
            assert time.monotonic() < deadline, "the publisher does not connect"
            time.sleep(0.01)

    def next_directive(self) -> Directive:
        return _directive(self._clock.now_ms())

    def roll_back(self, directive: Directive) -> bytes:
        """Decide: the signed directive is committed, and the publisher is told."""
        now_ms = self._clock.now_ms()
        with self._database.transaction() as session:
            epoch = dispatch.next_epoch(session, FLEET, now_ms)
            payload = self._keyring.sign_directive(msgspec.structs.replace(directive, epoch=epoch))
            dispatch.put_control(
                session, fleet=FLEET, topic=self.topic, epoch=epoch, payload=payload, now_ms=now_ms
            )
        self._publisher.wake()
        return payload

    def close(self) -> None:
        self._publisher.stop()
        self._database.close()


class _Fleet:
    """A thousand connections in another process, and when the last of them had a message."""

    def __init__(self, address: BrokerAddress) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_live, args=(address.host, address.port, theirs), daemon=True
        )
        self._process.start()
        assert self._receive() == "ready"

    def last_ns(self, topic: str, payload: bytes) -> int:
        """Wait until every device has the message; the monotonic time of the last delivery."""
        while True:
            found_topic, digest, at_ns = self._receive()
            if (found_topic, digest) == (topic, hashlib.sha256(payload).digest()):
                return int(at_ns)

    def close(self) -> None:
        self._pipe.send("end")
        self._process.join(TIMEOUT_S)
        self._pipe.close()

    def _receive(self) -> Any:
        assert self._pipe.poll(TIMEOUT_S), "the devices did not get the message"
        return self._pipe.recv()


def _live(host: str, port: int, pipe: Connection) -> None:
    """The other process: connect, subscribe, and tell when everybody has a message."""
    asyncio.run(_devices(host, port, pipe))


async def _devices(host: str, port: int, pipe: Connection) -> None:
    delivered: defaultdict[tuple[str, bytes], int] = defaultdict(int)

    def on_message(message: Publish) -> None:
        key = (message.topic, message.payload)
        delivered[key] += 1
        if delivered[key] == DEVICES:
            at_ns = time.monotonic_ns()
            del delivered[key]
            pipe.send((message.topic, hashlib.sha256(message.payload).digest(), at_ns))

    clients = [MqttClient(f"device-{i}", on_message=on_message) for i in range(DEVICES)]
    filters = (topics.directives(FLEET, COHORT), BARE_TOPIC)
    for start in range(0, DEVICES, 50):
        part = clients[start : start + 50]
        await asyncio.gather(*(client.connect(host, port) for client in part))
        wanted = tuple(SubscriptionRequest(name, 1) for name in filters)
        await asyncio.gather(*(client.subscribe(*wanted) for client in part))
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(pipe.fileno(), ended.set)
    pipe.send("ready")
    await ended.wait()
    await asyncio.gather(*(client.disconnect() for client in clients))


def _keyring(folder: Path) -> Keyring:
    return open_keyring(folder / "keys", fleet=FLEET, random_bytes=SystemClock().random_bytes)


def _directive(now_ms: int) -> Directive:
    stable, candidate = (
        ReleaseRef(f"manifests/{MODEL}/{digest}.json", digest) for digest in ("a" * 64, "b" * 64)
    )
    return Directive(
        fleet=FLEET,
        cohort=COHORT,
        model=MODEL,
        generation=1,
        epoch=1,
        issued_ms=now_ms,
        expires_ms=now_ms + 86_400_000,
        rollout="9f2c41d07ab3",
        salt="0" * 32,
        default=stable,
        arms=[Arm("candidate", "0" * 16, "0" * 15 + "f", candidate, 60_000)],
        activation=Activation.ACTIVE,
        starts=Starts.OPEN,
        spread_ms=0,
        soak_ms=60_000,
        report_every_ms=60_000,
        retry=1,
        standby=stable,
    )


def _check_us(keyring: Keyring) -> float:
    """What it costs a device to check the directive before it acts, in microseconds."""
    now_ms = SystemClock().now_ms()
    data = keyring.sign_directive(_directive(now_ms))
    keyset = read_keyset(keyring.keyset_bytes, fleet=FLEET, held=None)
    audience = checks.Audience(FLEET, COHORT, MODEL)

    def check() -> None:
        checks.check_directive(
            data, keyset=keyset, audience=audience, held=None, minimum_epoch=0, now_ms=now_ms
        )

    return statistics.median(_elapsed_us(check) for _ in range(CHECKS))


def _elapsed_us(work: Callable[[], None]) -> float:
    began_ns = time.perf_counter_ns()
    work()
    return (time.perf_counter_ns() - began_ns) / 1e3
