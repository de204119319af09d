"""A device with a certificate of its own speaks in the name of another, or of the server.

Both brokers must refuse it. Nothing of what was forged may reach what the server says of the
victim, and who was retired must be out, and stay out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress

import pytest

from device_agent.shell import mqtt
from fleet_contract import topics
from fleet_contract.topics import DeviceChannel
from fleet_server.broker.errors import BrokerError, RequestRefusedError
from fleet_server.broker.packets import SubscriptionRequest, Will
from fleet_server.broker.rules import INGEST, PUBLISHER
from tests.attacks.battlefield import DEADLINE_S, Battlefield
from tests.attacks.feeder import INPUTS
from tests.attacks.identities import (
    WANTED,
    Identity,
    forged_presence,
    forged_progress,
    recorded,
    refusal,
)
from tests.attacks.insider import COHORT, DEVICE, FLEET, MODEL

pytestmark = pytest.mark.slow
OF_THE_VICTIM = {channel: topics.device(FLEET, DEVICE, channel) for channel in DeviceChannel}
OF_THE_SERVER = (
    topics.stop(FLEET),
    topics.root(FLEET),
    topics.directive(FLEET, COHORT, MODEL),
    OF_THE_VICTIM[DeviceChannel.ASSIGNMENT],
    OF_THE_VICTIM[DeviceChannel.ACK],
)


@pytest.fixture(scope="module")
def enrolled(guarded: Battlefield) -> Identity:
    return Identity.join(guarded, "rogue")


@pytest.fixture
def rogue(guarded: Battlefield, enrolled: Identity) -> Iterator[Identity]:
    """A device that was taken over; the victim must not notice it."""
    guarded.wait_until(lambda: guarded.agent.status().connected, "the victim to be there")
    births, agent = guarded.agent._daemon.state.live.births, guarded.device()["agent"]
    with guarded.unharmed():
        yield enrolled
        until_stored(enrolled)
        shown = guarded.device()
        assert (shown["online"], shown["alarm"], shown["agent"]) == (True, None, agent)
        assert WANTED not in str(shown)
        assert guarded.agent._daemon.state.live.births == births, "the victim was thrown out"


def until_stored(rogue: Identity) -> None:
    """Say something in one's own name, and wait for it: what was said before has arrived, too."""
    said = rogue.field.device(rogue.name)["agent"].removeprefix("forged ")
    above = int(said or 0) + 1
    topic = topics.device(FLEET, rogue.name, DeviceChannel.PRESENCE)
    assert rogue.says(topic, forged_presence(online=True, above=above))
    rogue.field.wait_until(
        lambda: rogue.field.device(rogue.name)["agent"] == f"forged {above}", "its own lie"
    )


def test_words_of_another_device(rogue: Identity) -> None:
    report = topics.report(FLEET, DEVICE, MODEL)
    assert not rogue.says(OF_THE_VICTIM[DeviceChannel.PRESENCE], forged_presence())
    assert not rogue.says(OF_THE_VICTIM[DeviceChannel.PRESENCE], forged_presence(online=True))
    assert not rogue.says(OF_THE_VICTIM[DeviceChannel.PRESENCE], b"")
    assert not rogue.says(OF_THE_VICTIM[DeviceChannel.PROGRESS], forged_progress())
    assert not rogue.says(report, b"forged", retain=False)


@pytest.mark.parametrize("topic", OF_THE_SERVER)
def test_words_of_the_server(rogue: Identity, topic: str) -> None:
    assert not rogue.says(topic, b"forged")
    assert not rogue.says(topic, b"")


def test_will_in_the_name_of_another(rogue: Identity) -> None:
    """The embedded broker lets nobody in with it; Mosquitto does, and publishes nothing."""
    for topic in (OF_THE_VICTIM[DeviceChannel.PRESENCE], *OF_THE_SERVER):
        will = Will(topic, forged_presence(), qos=1, retain=True)
        assert rogue.enters(will=will) == (rogue.field.kind == "mosquitto"), topic


@pytest.mark.parametrize("client_id", [DEVICE, PUBLISHER, INGEST])
def test_connection_taken_by_a_client_id(rogue: Identity, client_id: str) -> None:
    """The embedded broker refuses the name; Mosquitto puts the certificate's in its place."""
    for topic in (OF_THE_VICTIM[DeviceChannel.PRESENCE], topics.stop(FLEET)):
        try:
            assert not rogue.says(topic, forged_presence(), client_id=client_id)
        except BrokerError as refused:
            assert "identifier" in str(refused).lower(), refused


def test_ears_of_another(rogue: Identity) -> None:
    """What is said to the victim is for the victim alone."""
    heard = asyncio.run(overheard(rogue))
    assert heard and not [topic for topic in heard if f"/device/{DEVICE}/" in topic]


async def overheard(rogue: Identity) -> list[str]:
    """What is retained, as far as the rogue is told; Mosquitto grants any subscription."""
    heard: list[str] = []
    granted = 0
    every = ("#", "fleet/v1/+/device/+/assignment", OF_THE_VICTIM[DeviceChannel.PRESENCE])
    async with rogue.connected() as client:
        client.on_message = lambda message: heard.append(message.topic)
        for wanted in every:
            with suppress(RequestRefusedError):
                await client.subscribe(SubscriptionRequest(wanted, 1))
                granted += wanted == "#"
        # In order: who hears this one has heard all before it.
        await client.subscribe(SubscriptionRequest(topics.stop(FLEET), 1))
        async with asyncio.timeout(DEADLINE_S):
            while heard.count(topics.stop(FLEET)) <= granted:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    return heard


def test_retired_device_that_comes_back(
    guarded: Battlefield, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt, "LONGEST_DELAY_MS", 200)
    folder = guarded.enrol("retired")
    with guarded.unharmed(), guarded.agent_in(folder) as agent:
        agent.wait_for(MODEL, digest=guarded.stable.digest, timeout_s=DEADLINE_S)
        guarded.wait_until(lambda: guarded.device("retired")["online"], "the device to be there")
        taken = Identity.copy(guarded, folder, "retired")
        assert taken.fetch().is_success
        assert guarded.http.post("/v1/devices/retired/retire").is_success
        guarded.wait_until(lambda: not agent.status().connected, "it to be thrown out")
        births = agent._daemon.state.live.births + 5
        assert agent._daemon.wait_until(
            lambda state: state.live.births >= births and not state.live.connected, DEADLINE_S
        )
        # It has its model, and nothing else.
        assert agent.model(MODEL).predict(INPUTS).release == guarded.stable.digest
        assert not taken.enters()
        assert refusal(taken.fetch()) == (401, "revoked_certificate")
        assert refusal(taken.renew()) == (401, "revoked_certificate")
        shown = guarded.device("retired")
        assert shown["retired_ms"] is not None
        assert not shown["online"]
        assert recorded(guarded, "device.retire", "retired") == ["done"]
