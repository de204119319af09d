"""A broker core with named clients, driven by hand."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fleet_server.broker.core import BrokerCore
from fleet_server.broker.limits import Limits
from fleet_server.broker.outputs import Close, Deliver, Output
from fleet_server.broker.packet_types import MQTT_5
from fleet_server.broker.packets import (
    ConnAck,
    Connect,
    Packet,
    Publish,
    SubAck,
    Subscribe,
    SubscriptionRequest,
    Will,
)
from fleet_server.broker.policy import Policy
from fleet_server.broker.properties import NO_PROPERTIES, Properties
from fleet_server.broker.reason_codes import ReasonCode
from tests.fleet_server.broker.authority import Authority


@dataclass
class Stage:
    """Sends packets into a core and sorts what comes out by connection."""

    core: BrokerCore
    now_ms: int = 1_000_000
    last_connection: int = 0
    inbox: dict[int, list[Packet]] = field(default_factory=lambda: defaultdict(list))
    packet_ids: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    closed: set[int] = field(default_factory=set)

    def apply(self, outputs: list[Output]) -> None:
        for output in outputs:
            assert output.connection not in self.closed, "output after Close"
            if isinstance(output, Close):
                self.closed.add(output.connection)
            elif isinstance(output, Deliver):
                self.inbox[output.connection].append(output.frame.publish)
                self.packet_ids[output.connection].append(output.packet_id)
            else:
                self.inbox[output.connection].append(output.packet)

    def open(self) -> int:
        self.last_connection += 1
        self.apply(self.core.opened(self.last_connection, self.now_ms))
        return self.last_connection

    def connect(
        self,
        client_id: str,
        *,
        version: int = MQTT_5,
        keep_alive_s: int = 60,
        will: Will | None = None,
        properties: Properties = NO_PROPERTIES,
        clean_start: bool = True,
        username: str | None = None,
    ) -> int:
        """The connection of a client that was accepted."""
        connection = self.open()
        connect = Connect(
            client_id=client_id,
            version=version,
            clean_start=clean_start,
            keep_alive_s=keep_alive_s,
            will=will,
            properties=properties,
            username=username,
        )
        self.send(connection, connect)
        (connack,) = self.take(connection)
        assert isinstance(connack, ConnAck)
        assert connack.reason is ReasonCode.SUCCESS
        return connection

    def send(self, connection: int, packet: Packet) -> None:
        self.apply(self.core.received(connection, packet, self.now_ms))

    def subscribe(
        self,
        connection: int,
        *requests: SubscriptionRequest | str,
        properties: Properties = NO_PROPERTIES,
    ) -> tuple[ReasonCode, ...]:
        """The codes of the SUBACK; retained messages stay in the inbox."""
        wanted = tuple(
            SubscriptionRequest(request, 1) if isinstance(request, str) else request
            for request in requests
        )
        self.send(connection, Subscribe(1, wanted, properties))
        suback = self.inbox[connection].pop(0)
        assert isinstance(suback, SubAck)
        return suback.reasons

    def publish(
        self,
        connection: int,
        topic: str,
        payload: bytes = b"x",
        *,
        qos: int = 1,
        retain: bool = False,
        properties: Properties = NO_PROPERTIES,
    ) -> None:
        packet_id = 7 if qos else 0
        self.send(connection, Publish(topic, payload, qos, retain, False, packet_id, properties))

    def lose(self, connection: int) -> None:
        """The network is gone, without a word."""
        self.closed.add(connection)
        self.apply(self.core.lost(connection, self.now_ms))

    def wait(self, duration_ms: int) -> None:
        """Time passes, with every tick that the core asks for."""
        end_ms = self.now_ms + duration_ms
        while (due_ms := self.core.next_deadline_ms()) is not None and due_ms <= end_ms:
            self.now_ms = max(self.now_ms, due_ms)
            self.apply(self.core.tick(self.now_ms))
        self.now_ms = end_ms

    def take(self, connection: int) -> list[Packet]:
        return self.inbox.pop(connection, [])

    def messages(self, connection: int) -> list[Publish]:
        """Takes the inbox; only its PUBLISH packets."""
        return [packet for packet in self.take(connection) if isinstance(packet, Publish)]

    def payloads(self, connection: int) -> list[bytes]:
        return [message.payload for message in self.messages(connection)]


class StageBuilder:
    def __call__(self, policy: Policy | None = None, **limits: int) -> Stage:
        return Stage(BrokerCore(Limits(**limits), policy))


@pytest.fixture
def build_stage() -> StageBuilder:
    """For a stage with limits or a policy of its own."""
    return StageBuilder()


@pytest.fixture
def stage(build_stage: StageBuilder) -> Stage:
    return build_stage()


@pytest.fixture
def make_authority(tmp_path: Path) -> Callable[[str], Authority]:
    """Each name gives an authority of its own."""
    return lambda name: Authority(tmp_path / name)


@pytest.fixture
def authority(make_authority: Callable[[str], Authority]) -> Authority:
    return make_authority("authority")
