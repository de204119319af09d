"""Who may say and hear what: by the table, and by both brokers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from fleet_contract import topics
from fleet_contract.topics import DeviceChannel
from fleet_server.broker.client import MqttClient
from fleet_server.broker.errors import ClientError, RequestRefusedError
from fleet_server.broker.listener import EmbeddedBroker
from fleet_server.broker.mosquitto import PrivateMosquitto
from fleet_server.broker.mosquitto_configuration import MosquittoSecurity
from fleet_server.broker.packets import Publish, SubscriptionRequest, Will
from fleet_server.broker.policy import PeerCertificate
from fleet_server.broker.rules import INGEST, PUBLISHER, CertifiedPolicy, access_list

DEADLINE_S = 60.0
FLEET, HOST = "home", "127.0.0.1"
CHANNELS = {channel: topics.device(FLEET, "ann", channel) for channel in DeviceChannel}
REPORT = topics.report(FLEET, "ann", "detector")
BOTH = ["embedded", pytest.param("mosquitto", marks=pytest.mark.broker)]


class Guarded:
    """A broker, its authority, and clients who show what they hear."""

    def __init__(self, broker: Any, authority: Any, revoked: set[str]) -> None:
        self.broker = broker
        self.authority = authority
        self.revoked = revoked
        self.heard: dict[str, list[Publish]] = {}

    async def connect(self, name: str, **options: Any) -> MqttClient:
        heard = self.heard.setdefault(name, [])
        client = MqttClient(name, on_message=heard.append, **options)
        await client.connect(HOST, self.broker.port, tls=self.authority.client(name))
        return client

    async def revoke(self, name: str) -> None:
        """As the server does it: nobody of that name comes back, and who is there goes."""
        self.revoked.add(self.authority.fingerprints[name])
        self.authority.revoke(name)
        if isinstance(self.broker, EmbeddedBroker):
            self.broker.expel(name)
        else:
            await self.broker.take_up()
            await self.broker.expel(name, self.authority.client(name))


@asynccontextmanager
async def guarded(kind: str, authority: Any, folder: Path) -> AsyncIterator[Guarded]:
    revoked: set[str] = set()
    broker: Any
    if kind == "embedded":

        def is_believed(certificate: PeerCertificate) -> bool:
            return certificate.fingerprint not in revoked

        policy = CertifiedPolicy(FLEET, is_believed)
        tls = authority.server()
        broker = EmbeddedBroker(clock=lambda: time.monotonic_ns() // 10**6, tls=tls, policy=policy)
    else:
        rules = folder / "rules"
        rules.write_text(access_list(FLEET))
        own = authority.issue("localhost")
        files = MosquittoSecurity(authority.path, authority.revocations, own, own, rules)
        broker = PrivateMosquitto(folder / "broker", security=files)
    await broker.start()
    try:
        yield Guarded(broker, authority, revoked)
    finally:
        await broker.stop()


def on(
    kind: str, request: pytest.FixtureRequest, body: Callable[[Guarded], Coroutine[Any, Any, None]]
) -> None:
    """Run a test's body with a broker of that kind."""
    if kind == "mosquitto":
        request.getfixturevalue("require_mosquitto")
    authority = request.getfixturevalue("authority")

    async def run() -> None:
        async with (
            asyncio.timeout(2 * DEADLINE_S),
            guarded(kind, authority, request.getfixturevalue("tmp_path")) as scene,
        ):
            await body(scene)

    asyncio.run(run())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def test_rule_that_gives_a_device_more_than_its_own() -> None:
    policy = CertifiedPolicy(FLEET, lambda _: True)
    spoken = {DeviceChannel.PRESENCE, DeviceChannel.PROGRESS, DeviceChannel.REPORT}
    for channel, topic in CHANNELS.items():
        told = topic if channel is not DeviceChannel.REPORT else REPORT
        assert policy.may_publish("ann", told) == (channel in spoken), told
        assert policy.may_subscribe("ann", told) == (channel not in spoken), told
        assert not policy.may_publish("bob", told)
        assert not policy.may_subscribe("bob", told)
        assert policy.may_subscribe(INGEST, told) == (channel in spoken)
        assert policy.may_publish(INGEST, told) == (channel is DeviceChannel.ACK)
    controls = [topics.stop(FLEET), topics.root(FLEET), topics.directive(FLEET, "lab", "detector")]
    for topic in controls:
        assert policy.may_subscribe("ann", topic) and policy.may_publish(PUBLISHER, topic)
        assert not policy.may_publish("ann", topic) and not policy.may_publish(INGEST, topic)
        assert not policy.may_subscribe("ann", topic.replace(f"/{FLEET}/", "/other/"))
    assert policy.may_subscribe("ann", topics.directives(FLEET, "lab"))


@pytest.mark.parametrize(
    "wide",
    [
        "#",
        "fleet/#",
        "fleet/v1/home/#",
        "fleet/v1/home/device/+/assignment",
        "fleet/v1/home/device/ann/+",
        "fleet/v1/home/device/ann/#",
        "fleet/v1/home/device/ann/assignment/#",
        "fleet/v1/home/+",
        "fleet/v1/+/stop",
        "fleet/v1/home/stop/#",
        "fleet/v1/home/device/%u/assignment",
        "fleet/v1/home/cohort/#",
        "$SYS/#",
    ],
)
def test_filter_wider_than_the_rules(wide: str) -> None:
    policy = CertifiedPolicy(FLEET, lambda _: True)
    assert not policy.may_subscribe("ann", wide)
    assert not policy.may_publish("ann", wide)


@pytest.mark.timeout(150)
@pytest.mark.parametrize("kind", BOTH)
def test_device_acts_for_another(kind: str, request: pytest.FixtureRequest) -> None:
    async def body(scene: Guarded) -> None:
        ingest = await scene.connect(INGEST)
        await ingest.subscribe(
            SubscriptionRequest(topics.device_filter(FLEET, DeviceChannel.PROGRESS), 1)
        )
        bob = await scene.connect("bob")
        with pytest.raises(RequestRefusedError):
            await bob.publish(CHANNELS[DeviceChannel.PROGRESS], b"for ann")
        with pytest.raises(RequestRefusedError):
            await bob.publish(topics.stop(FLEET), b"forged", retain=True)
        await bob.publish(topics.device(FLEET, "bob", DeviceChannel.PROGRESS), b"for bob")
        await until(lambda: bool(scene.heard[INGEST]))
        assert [message.payload for message in scene.heard[INGEST]] == [b"for bob"]
        # Mosquitto grants any subscription, and delivers nothing over it.
        try:
            await bob.subscribe(SubscriptionRequest("#", 1))
        except RequestRefusedError:
            assert kind == "embedded"
        publisher = await scene.connect(PUBLISHER)
        await publisher.publish(CHANNELS[DeviceChannel.ASSIGNMENT], b"ann's", retain=True)
        mine = topics.device(FLEET, "bob", DeviceChannel.ASSIGNMENT)
        await bob.subscribe(SubscriptionRequest(mine, 1))
        await publisher.publish(mine, b"bob's", retain=True)
        await until(lambda: bool(scene.heard["bob"]))
        assert {message.payload for message in scene.heard["bob"]} == {b"bob's"}
        for client in (ingest, bob, publisher):
            await client.disconnect()

    on(kind, request, body)


@pytest.mark.timeout(150)
@pytest.mark.parametrize("kind", BOTH)
def test_session_taken_by_another_name(kind: str, request: pytest.FixtureRequest) -> None:
    async def body(scene: Guarded) -> None:
        ended: list[object] = []
        ann = await scene.connect("ann", on_end=ended.append)
        thief = MqttClient("ann", username="ann")
        # Refused, or let in as who it is.
        try:
            await thief.connect(HOST, scene.broker.port, tls=scene.authority.client("bob"))
        except ClientError:
            assert kind == "embedded"
        else:
            with pytest.raises(RequestRefusedError):
                await thief.publish(CHANNELS[DeviceChannel.PRESENCE], b"forged")
            await thief.disconnect()
        await ann.publish(CHANNELS[DeviceChannel.PRESENCE], b"here")
        assert not ended
        await ann.disconnect()

    on(kind, request, body)


@pytest.mark.timeout(150)
@pytest.mark.parametrize("kind", BOTH)
def test_will_that_speaks_for_another(kind: str, request: pytest.FixtureRequest) -> None:
    async def body(scene: Guarded) -> None:
        ingest = await scene.connect(INGEST)
        every = topics.device_filter(FLEET, DeviceChannel.PRESENCE)
        await ingest.subscribe(SubscriptionRequest(every, 1))
        # Embedded: refused at once. Mosquitto: the will is not published.
        try:
            bob = await scene.connect("bob", will=Will(CHANNELS[DeviceChannel.PRESENCE], b"dead"))
        except ClientError:
            assert kind == "embedded"
        else:
            bob.drop()
        ann = await scene.connect("ann", will=Will(CHANNELS[DeviceChannel.PRESENCE], b"gone"))
        ann.drop()
        await until(lambda: bool(scene.heard[INGEST]))
        assert [message.payload for message in scene.heard[INGEST]] == [b"gone"]
        await ingest.disconnect()

    on(kind, request, body)


@pytest.mark.timeout(150)
@pytest.mark.parametrize("kind", BOTH)
def test_client_without_a_certificate_of_the_fleet(
    kind: str, request: pytest.FixtureRequest, make_authority: Any
) -> None:
    async def body(scene: Guarded) -> None:
        foreign = make_authority("foreign").client("ann")
        foreign.load_verify_locations(cafile=str(scene.authority.path))
        for context in (scene.authority.client(None), foreign):
            with pytest.raises((OSError, ClientError)):
                await MqttClient("ann").connect(HOST, scene.broker.port, tls=context)

    on(kind, request, body)


@pytest.mark.timeout(150)
@pytest.mark.parametrize("kind", BOTH)
def test_revoked_device_stays_connected(kind: str, request: pytest.FixtureRequest) -> None:
    async def body(scene: Guarded) -> None:
        ended: list[object] = []
        bob = await scene.connect("bob")
        context = scene.authority.client("ann")
        ann = MqttClient("ann", on_end=ended.append)
        await ann.connect(HOST, scene.broker.port, tls=context)
        await scene.revoke("ann")
        await until(lambda: bool(ended))
        with pytest.raises((OSError, ClientError)):
            await MqttClient("ann").connect(HOST, scene.broker.port, tls=context)
        # Others, and the same name with a new certificate, are not touched.
        await bob.publish(topics.device(FLEET, "bob", DeviceChannel.PROGRESS), b"here")
        again = await scene.connect("ann")
        await again.disconnect()
        await bob.disconnect()

    on(kind, request, body)


@pytest.mark.broker
@pytest.mark.timeout(150)
def test_rotated_authority_that_mosquitto_does_not_take_up(
    request: pytest.FixtureRequest, make_authority: Any
) -> None:
    async def body(scene: Guarded) -> None:
        old, new = scene.authority, make_authority("new")
        context = new.client("ann")
        context.load_verify_locations(cafile=str(old.path))
        stays = await scene.connect("bob")
        with pytest.raises((OSError, ClientError)):
            await MqttClient("ann").connect(HOST, scene.broker.port, tls=context)
        old.path.write_bytes(old.path.read_bytes() + new.path.read_bytes())
        listed = old.revocations.read_bytes() + new.revocations.read_bytes()
        old.revocations.write_bytes(listed)
        old.issue("localhost").write_bytes(new.issue("localhost").read_bytes())
        scene.broker.reload()

        async def takes_it_up() -> bool:
            try:
                ann = MqttClient("ann")
                await ann.connect(HOST, scene.broker.port, tls=context)
            except (OSError, ClientError):
                return False
            await ann.publish(CHANNELS[DeviceChannel.PROGRESS], b"here")
            await ann.disconnect()
            return True

        only_new = new.client("carl")
        async with asyncio.timeout(DEADLINE_S):
            while not await takes_it_up():  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        carl = MqttClient("carl")
        await carl.connect(HOST, scene.broker.port, tls=only_new)
        await carl.disconnect()
        await stays.publish(topics.device(FLEET, "bob", DeviceChannel.PROGRESS), b"here")
        await stays.disconnect()

    on("mosquitto", request, body)
