"""A thief has read an enrolment token, and is faster than the device that it was made for.

The device is told what has happened, the operator can see it, and one call gives the name back:
whatever the thief has said and done under it is over.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial

import httpx
import pytest

from device_agent.errors import EnrolmentFailed
from fleet_contract import codec, topics
from fleet_contract.topics import DeviceChannel
from fleet_server import gatekeeper
from fleet_server.broker.client import MqttClient
from fleet_server.broker.codec import encode
from fleet_server.broker.errors import ConnectionLostError
from fleet_server.broker.packet_types import MQTT_5
from fleet_server.broker.packets import Connect, SubscriptionRequest
from fleet_server.broker.rules import INGEST
from tests.attacks.battlefield import DEADLINE_S, Battlefield
from tests.attacks.feeder import INPUTS
from tests.attacks.identities import (
    CAPABILITIES,
    WANTED,
    Identity,
    forged_presence,
    forged_progress,
    give_away,
    put_out,
    recorded,
    refusal,
)
from tests.attacks.insider import DEVICE, FLEET, MODEL
from tests.fleet_server.device_key import DeviceKey

pytestmark = pytest.mark.slow
SOON_S = 5.0


@pytest.fixture
def fleet(guarded: Battlefield) -> Iterator[Battlefield]:
    """Whatever is done with tokens, the devices that are in do not notice."""
    with guarded.unharmed():
        yield guarded
        assert WANTED not in str(guarded.device())


def spend(field: Battlefield, token: str, name: str) -> httpx.Response:
    """Try to enrol by a client of one's own."""
    body = codec.encode_json(DeviceKey().request(token, name, CAPABILITIES))
    return Identity(field, name).ask("POST", "/v1/devices/enrol", content=body)


def used(field: Battlefield, device: str) -> list[int]:
    """How often the tokens for a device were spent, as the operator sees it."""
    listed = field.http.get("/v1/enrolment-tokens").json()
    return [item["used"] for item in listed if item["device"] == device]


def lie(thief: Identity) -> None:
    """Say what would stand above all that an honest device can ever say."""
    presence, progress = (
        topics.device(FLEET, thief.name, channel)
        for channel in (DeviceChannel.PRESENCE, DeviceChannel.PROGRESS)
    )
    assert thief.says(presence, forged_presence(online=True))
    for retain in (True, False):
        assert thief.says(progress, forged_progress(), retain=retain)
    thief.field.wait_until(
        lambda: bool(thief.field.device(thief.name)["progress"]), "the lies to be stored"
    )


def test_thief_who_is_faster(fleet: Battlefield) -> None:
    token = fleet.token(device="door")
    thief = Identity.join(fleet, "door", token)
    lie(thief)
    # The owner comes second: told so, and told what to do.
    with pytest.raises(EnrolmentFailed, match="edgefleet device replace door"):
        fleet.enrol("door", token)
    assert used(fleet, "door") == [1]
    assert recorded(fleet, "device.enrol", "door") == ["done"]
    assert fleet.device("door")["active"] == {MODEL: WANTED}
    # The name is given to the owner, who is believed from the first word on.
    replaced = give_away(fleet, "door")
    assert refusal(thief.fetch()) == (401, "revoked_certificate")
    assert not thief.enters()
    folder = fleet.enrol("door", replaced)
    with fleet.agent_in(folder) as agent:
        agent.wait_for(MODEL, digest=fleet.stable.digest, timeout_s=DEADLINE_S)
        fleet.wait_until(lambda: honest(fleet, "door"), "the owner to be heard")
        assert agent.model(MODEL).predict(INPUTS).release == fleet.stable.digest
        # The thief stays out, with whatever he has.
        assert refusal(thief.renew()) == (401, "revoked_certificate")
        assert refusal(spend(fleet, token, "door")) == (409, "device_exists")
        assert refusal(spend(fleet, replaced, "door")) == (401, "used_enrolment_token")
        assert not thief.enters()
        assert honest(fleet, "door") and agent.status().connected
    assert recorded(fleet, "device.replace", "door") == ["done"]


def honest(field: Battlefield, name: str) -> bool:
    """Whether the server says of a device what it is, and nothing of what the thief said."""
    shown = field.device(name)
    running = [item["active"] for item in shown["progress"]]
    return bool(shown["online"] and running == [field.stable.digest] and WANTED not in str(shown))


def test_thief_on_the_line_while_he_is_replaced(fleet: Battlefield) -> None:
    """His connection ends at once, and not with the next request that he makes."""
    thief = Identity.join(fleet, "gate")

    async def hold_on() -> None:
        ended = asyncio.Event()
        async with thief.connected() as client, asyncio.timeout(DEADLINE_S):
            client.on_end = lambda _reason: ended.set()
            replace = partial(fleet.http.post, "/v1/devices/gate/replace")
            (await asyncio.to_thread(replace)).raise_for_status()
            await ended.wait()

    asyncio.run(hold_on())
    fleet.wait_until(lambda: not thief.enters(), "the thief to be out")


def test_thief_who_shows_his_certificate_in_time_and_speaks_up_late(
    fleet: Battlefield, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No list that is read later touches a connection whose certificate was looked at before."""
    monkeypatch.setattr(gatekeeper, "HALF_OPEN_S", SOON_S)

    async def lurk(name: str) -> bool:
        """Whether he spoke up before the last round, as he has to for being caught by it."""
        thief = Identity.join(fleet, name)
        reader, writer = await asyncio.open_connection(
            fleet.broker.host, fleet.broker.port, ssl=thief.context()
        )
        began_s = time.monotonic()
        await asyncio.to_thread(put_out, fleet, name)
        writer.write(encode(Connect(name), MQTT_5))
        async with asyncio.timeout(DEADLINE_S):
            with suppress(ConnectionError):
                await reader.read(1)
            in_time = time.monotonic() < began_s + SOON_S
            with suppress(ConnectionError):
                if in_time:
                    await reader.read()  # until he is put out
        writer.transport.abort()
        assert not await asyncio.to_thread(thief.enters)
        return in_time

    attempts = (asyncio.run(lurk(f"vault-{number}")) for number in range(20))
    assert any(attempts), "never in time"


def test_last_round_that_hits_the_right_device(
    fleet: Battlefield, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gatekeeper, "HALF_OPEN_S", SOON_S)
    Identity.join(fleet, "shed")
    folder = fleet.enrol("shed", give_away(fleet, "shed"))
    with fleet.agent_in(folder) as agent:
        fleet.wait_until(lambda: not fleet.app.state.gatekeeper.will_expel("shed"), "the rounds")
        agent.wait_for(MODEL, digest=fleet.stable.digest, timeout_s=DEADLINE_S)
        fleet.wait_until(lambda: honest(fleet, "shed"), "the owner to be heard")
        assert fleet.device("shed")["alarm"] is None


def test_last_word_of_a_thief_who_is_out(fleet: Battlefield) -> None:
    """It lay at the broker, for whoever asks: a server that starts anew would believe it again."""
    thief = Identity.join(fleet, "hatch")
    lie(thief)
    folder = fleet.enrol("hatch", give_away(fleet, "hatch"))
    assert not lying_there(fleet, "hatch")
    # The server has lost its connection by that, and has heard all that is there once more.
    with fleet.agent_in(folder):
        fleet.wait_until(lambda: honest(fleet, "hatch"), "the owner to be heard")
        assert lying_there(fleet, "hatch")


def lying_there(field: Battlefield, name: str) -> bool:
    """Whether the broker holds a presence of a device: asked for in place of the server."""
    heard: list[str] = []
    asked, last = (
        topics.device(FLEET, device, DeviceChannel.PRESENCE) for device in (name, DEVICE)
    )

    async def ask() -> bool:
        client = MqttClient(INGEST, on_message=lambda message: heard.append(message.topic))
        tls = field.app.state.authority.client(INGEST)
        await client.connect(field.broker.host, field.broker.port, tls=tls)
        await client.subscribe(SubscriptionRequest(asked, 1))
        await client.subscribe(SubscriptionRequest(last, 1))
        while last not in heard:
            if not client.connected:
                raise ConnectionLostError("the server has come back")
            await asyncio.sleep(0.01)
        await client.disconnect()
        return asked in heard

    while True:
        heard.clear()
        with suppress(ConnectionLostError):
            return asyncio.run(ask())


def test_token_for_one_name_used_for_another(fleet: Battlefield) -> None:
    token = fleet.token(device="door-17")
    for name in ("victim", "someone-else", "door-170"):
        assert refusal(spend(fleet, token, name)) == (401, "other_device")
    assert used(fleet, "door-17") == [0]
    assert spend(fleet, token, "door-17").is_success


def test_replacement_token_used_for_another_name(fleet: Battlefield) -> None:
    fleet.enrol("lamp")
    token = give_away(fleet, "lamp")
    assert refusal(spend(fleet, token, "victim")) == (401, "other_device")
    assert refusal(spend(fleet, token, "lamp-2")) == (401, "other_device")
    assert spend(fleet, token, "lamp").is_success


def test_batch_token_after_it_was_revoked(fleet: Battlefield) -> None:
    made = fleet.http.post("/v1/devices/tokens", json={"prefix": "line7-", "count": 5}).json()
    honest_one = Identity.join(fleet, "line7-1", made["token"])
    # A batch is for names of the line, each once, and no others.
    assert refusal(spend(fleet, made["token"], "victim")) == (401, "other_device")
    assert refusal(spend(fleet, made["token"], "line7-1")) == (409, "device_exists")
    thief = Identity.join(fleet, "line7-2", made["token"])
    assert fleet.http.delete(f"/v1/enrolment-tokens/{made['id']}").is_success
    assert refusal(spend(fleet, made["token"], "line7-3")) == (401, "revoked_enrolment_token")
    listed = fleet.http.get("/v1/enrolment-tokens").json()
    batch = next(item for item in listed if item["id"] == made["id"])
    assert (batch["used"], batch["revoked_ms"] is not None) == (2, True)
    # Who is in stays in, until the operator says otherwise.
    fleet.http.post("/v1/devices/line7-2/retire").raise_for_status()
    assert refusal(thief.fetch()) == (401, "revoked_certificate")
    assert honest_one.fetch().is_success and honest_one.enters()
