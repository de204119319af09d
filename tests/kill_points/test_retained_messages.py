"""The broker's memory is nobody's truth: what a stranger or a crash did to it is repaired."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from fleet_contract import topics
from fleet_server.broker.client import MqttClient
from fleet_server.broker.errors import ConnectionLostError
from fleet_server.broker.packets import Publish, SubscriptionRequest
from fleet_server.broker.rules import PUBLISHER
from tests.kill_points.light_fleet import LightFleet
from tests.kill_points.server_room import COHORT, FLEET, MODEL, ServerRoom, plan, stage

DEVICES = 3
REPAIR_S = 2.0
"""Less than the time after which the publisher looks by itself whether all is as it should be."""
ATTEMPTS = 10
DEADLINE_S = 60.0
TOPIC = topics.directive(FLEET, COHORT, MODEL)
DIRECT = plan(stage("full", "full", 100, minimum_predictions=20))

pytestmark = pytest.mark.slow


class Stranger:
    """A client with the means of an attacker inside: it may publish anything anywhere.

    Where the broker knows everybody it has stolen the publisher's certificate, whose place it takes
    for the moment of a look.
    """

    def __init__(self, room: ServerRoom, fleet: LightFleet) -> None:
        self._host, self._port = fleet.devices[0].host, fleet.devices[0].port
        self._tls: ssl.SSLContext | None = None
        if fleet.devices[0].tls is not None:
            self._tls = ssl.create_default_context(cafile=str(room.anchors))
            self._tls.load_cert_chain(room.anchors.with_name(f"{PUBLISHER}.pem"))

    def harm(self, payload: bytes, wanted: bytes) -> float:
        """Put ``payload`` in the directive's place; how many ms until ``wanted`` is there again."""
        return asyncio.run(self._harm(payload, wanted))

    def retained(self, count: int) -> dict[str, bytes]:
        """What a client that comes now is given, once that is ``count`` messages."""
        return asyncio.run(self._retained(count))

    async def _harm(self, payload: bytes, wanted: bytes) -> float:
        harmed, repaired = asyncio.Event(), asyncio.Event()

        def on_message(message: Publish) -> None:
            if message.payload == payload:
                harmed.set()
            elif message.payload == wanted and harmed.is_set():
                repaired.set()

        client = await self._connect("stranger", on_message)
        await client.subscribe(SubscriptionRequest(TOPIC, 1))
        began_ns = time.monotonic_ns()
        await client.publish(TOPIC, payload, retain=True)
        async with asyncio.timeout(DEADLINE_S):
            await repaired.wait()
        took_ms = (time.monotonic_ns() - began_ns) / 1e6
        await client.disconnect()
        return took_ms

    async def _retained(self, count: int) -> dict[str, bytes]:
        async with asyncio.timeout(DEADLINE_S):
            while True:
                with suppress(ConnectionLostError):
                    found = await self._look(count)
                    if len(found) >= count:
                        return found
                # The publisher has come back for its place, before all was seen.

    async def _look(self, count: int) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        over = asyncio.Event()

        def on_message(message: Publish) -> None:
            found[message.topic] = message.payload
            if len(found) >= count:
                over.set()

        client = await self._connect("reader", on_message)
        client.on_end = lambda _reason: over.set()
        wanted = (SubscriptionRequest(name, 1) for name in topics.control_filters(FLEET))
        await client.subscribe(*wanted)
        await over.wait()
        # One more, if there is one, comes within the same breath.
        await asyncio.sleep(0.1)
        await client.disconnect()
        return found

    async def put(self, topic: str, payload: bytes) -> None:
        client = await self._connect("other", lambda _message: None)
        await client.publish(topic, payload, retain=True)
        await client.disconnect()

    async def _connect(self, name: str, on_message: Callable[[Publish], None]) -> MqttClient:
        client = MqttClient(PUBLISHER if self._tls else name, on_message=on_message)
        await client.connect(self._host, self._port, tls=self._tls)
        return client


@pytest.fixture
def older(open_room: ServerRoom, light_fleet: LightFleet) -> bytes:
    """A signed directive that was replaced by a newer one; everybody runs the same release."""
    open_room.bring_devices(light_fleet, DEVICES)
    first = first_seen(open_room, "1.0.0")
    if open_room.control_messages()[TOPIC] == first:
        # It was all over before anybody looked: what it ended with is replaced by the next.
        first_seen(open_room, "1.1.0")
    assert open_room.control_messages()[TOPIC] != first
    return first


def first_seen(room: ServerRoom, version: str) -> bytes:
    """Roll a release out; the first directive that was seen meanwhile."""
    rollout = room.start_rollout(version, DIRECT)
    room.wait_until(lambda: TOPIC in room.control_messages(), "the first directive")
    first = room.control_messages()[TOPIC]
    room.wait_for_state(rollout, "completed")
    return first


def test_directive_deleted_or_overwritten_by_a_stranger(
    open_room: ServerRoom, light_fleet: LightFleet, older: bytes
) -> None:
    room, stranger = open_room, Stranger(open_room, light_fleet)
    decided = room.control_messages()
    before = light_fleet.active(MODEL)
    for what, payload in (("deleted", b""), ("older", older), ("nonsense", b"nonsense")):
        # Once in time is enough: a machine that stands still repairs nothing.
        for _ in range(ATTEMPTS):
            took_ms = stranger.harm(payload, decided[TOPIC])
            print(f"\n{what}: repaired after {took_ms:.1f} ms")
            if took_ms < REPAIR_S * 1000:
                break
        else:
            pytest.fail(f"{what}: never repaired in time")
        assert stranger.retained(len(decided)) == decided

    def refused() -> bool:
        shown = room.ask("GET", "/v1/devices/dev-00")["refusals"]
        return {"old_epoch", "malformed"} <= {refusal["reason"] for refusal in shown}

    room.wait_until(refused, "the devices' refusals")
    assert light_fleet.active(MODEL) == before
    assert room.control_messages() == decided


def test_message_that_nobody_decided_stays(
    open_room: ServerRoom, light_fleet: LightFleet, older: bytes
) -> None:
    decided = open_room.control_messages()
    stranger = Stranger(open_room, light_fleet)
    asyncio.run(stranger.put(topics.directive(FLEET, COHORT, "stranger"), older))
    open_room.wait_until(
        lambda: stranger.retained(len(decided)) == decided, "the foreign message to be cleared"
    )


def test_broker_restarted_empty(
    request: pytest.FixtureRequest,
    room: ServerRoom,
    light_fleet: LightFleet,
    tmp_path: Path,
) -> None:
    room.bring_devices(light_fleet, DEVICES)
    first_seen(room, "1.0.0")
    stranger = Stranger(room, light_fleet)
    decided = room.control_messages()
    assert len(decided) == DEVICES + 3
    if "mosquitto" in request.node.name:
        request.getfixturevalue("mosquitto").restart_empty(tmp_path / "mosquitto")
    else:
        room.kill()
    room.wait_ready()
    assert stranger.retained(len(decided)) == decided
    # Devices came back to it, and their telemetry is whole.
    second = room.start_rollout("1.1.0", DIRECT)
    room.wait_for_state(second, "completed")
    stable = room.releases["1.1.0"].ref.digest
    room.wait_until(
        lambda: set(light_fleet.active(MODEL).values()) == {stable}, "every device to follow"
    )
