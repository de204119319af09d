"""The broker's memory is nobody's truth: what a stranger or a crash did to it is repaired."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from fleet_contract import topics
from fleet_server.broker.client import MqttClient
from fleet_server.broker.packets import Publish, SubscriptionRequest
from tests.kill_points.light_fleet import LightFleet
from tests.kill_points.server_room import COHORT, FLEET, MODEL, ServerRoom, plan, stage

DEVICES = 3
REPAIR_S = 2.0
TOPIC = topics.directive(FLEET, COHORT, MODEL)
DIRECT = plan(stage("full", "full", 100, minimum_predictions=20))

pytestmark = pytest.mark.slow


class Stranger:
    """A client with the means of an attacker inside: it may publish anything anywhere."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = str(parts.hostname), int(parts.port or 0)

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

        client = MqttClient("stranger", on_message=on_message)
        await client.connect(self._host, self._port)
        await client.subscribe(SubscriptionRequest(TOPIC, 1))
        began_ns = time.monotonic_ns()
        await client.publish(TOPIC, payload, retain=True)
        async with asyncio.timeout(20):
            await repaired.wait()
        took_ms = (time.monotonic_ns() - began_ns) / 1e6
        await client.disconnect()
        return took_ms

    async def _retained(self, count: int) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        complete = asyncio.Event()

        def on_message(message: Publish) -> None:
            found[message.topic] = message.payload
            if len(found) >= count:
                complete.set()

        client = MqttClient("reader", on_message=on_message)
        await client.connect(self._host, self._port)
        wanted = (SubscriptionRequest(name, 1) for name in topics.control_filters(FLEET))
        await client.subscribe(*wanted)
        async with asyncio.timeout(20):
            await complete.wait()
        # One more, if there is one, comes within the same breath.
        await asyncio.sleep(0.1)
        await client.disconnect()
        return found


@pytest.fixture
def older(room: ServerRoom, light_fleet: LightFleet) -> bytes:
    """A signed directive that was replaced by a newer one; everybody runs 1.0.0."""
    room.bring_devices(light_fleet, DEVICES)
    rollout = room.start_rollout("1.0.0", DIRECT)
    room.wait_until(lambda: TOPIC in room.control_messages(), "the first directive")
    first = room.control_messages()[TOPIC]
    room.wait_for_state(rollout, "completed")
    assert room.control_messages()[TOPIC] != first
    return first


@pytest.fixture
def stranger(room: ServerRoom, older: bytes, light_fleet: LightFleet) -> Stranger:
    device = light_fleet.devices[0]
    return Stranger(f"mqtt://{device.host}:{device.port}")


def test_directive_deleted_or_overwritten_by_a_stranger(
    room: ServerRoom, light_fleet: LightFleet, older: bytes, stranger: Stranger
) -> None:
    decided = room.control_messages()
    before = light_fleet.active(MODEL)
    for what, payload in (("deleted", b""), ("older", older), ("nonsense", b"nonsense")):
        took_ms = stranger.harm(payload, decided[TOPIC])
        print(f"\n{what}: repaired after {took_ms:.1f} ms")
        assert took_ms < REPAIR_S * 1000
        assert stranger.retained(len(decided)) == decided

    def refused() -> bool:
        shown = room.ask("GET", "/v1/devices/dev-00")["refusals"]
        return {"old_epoch", "malformed"} <= {refusal["reason"] for refusal in shown}

    room.wait_until(refused, "the devices' refusals")
    assert light_fleet.active(MODEL) == before
    assert room.control_messages() == decided


def test_message_that_nobody_decided_stays(
    room: ServerRoom, older: bytes, stranger: Stranger
) -> None:
    decided = room.control_messages()
    asyncio.run(_put(stranger, topics.directive(FLEET, COHORT, "stranger"), older))
    room.wait_until(
        lambda: stranger.retained(len(decided)) == decided, "the foreign message to be cleared"
    )


async def _put(stranger: Stranger, topic: str, payload: bytes) -> None:
    client = MqttClient("other")
    await client.connect(stranger._host, stranger._port)
    await client.publish(topic, payload, retain=True)
    await client.disconnect()


def test_broker_restarted_empty(
    request: pytest.FixtureRequest,
    room: ServerRoom,
    light_fleet: LightFleet,
    older: bytes,
    stranger: Stranger,
    tmp_path: Path,
) -> None:
    decided = room.control_messages()
    assert len(decided) == DEVICES + 2
    if "mosquitto" in request.node.name:
        request.getfixturevalue("mosquitto").restart_empty()
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
