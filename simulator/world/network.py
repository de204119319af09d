"""The network between clients and the embedded broker's core: packets with a delay, in order.

Decides when a packet arrives. Each direction of a connection keeps its order, as TCP does; delays
are drawn from the world's random numbers. Packets travel as data: their bytes are the codec's
business, which has tests of its own.
"""

import random
from typing import Protocol

from fleet_server.broker.core import BrokerCore
from fleet_server.broker.limits import Limits
from fleet_server.broker.outputs import Close, Deliver, Output
from fleet_server.broker.packets import (
    ConnAck,
    Connect,
    Packet,
    PubAck,
    Publish,
    Subscribe,
    SubscriptionRequest,
    Unsubscribe,
)
from simulator.world.kernel import Kernel

LEAST_DELAY_MS = 2
MEAN_JITTER_MS = 18

_BROKER_LIMITS = Limits(server_keep_alive_s=3600)
"""Nobody is cut off for silence within an hour: virtual clients send no pings."""


class Client(Protocol):
    """Whoever is at the other end of a link."""

    def connected(self) -> None:
        """The broker accepted the connection."""

    def message(self, topic: str, payload: bytes) -> None:
        """A publish arrived."""

    def closed(self) -> None:
        """The connection is gone."""


class Link:
    """One connection, as its client holds it."""

    def __init__(self, network: "Network", number: int, client: Client) -> None:
        self._network = network
        self.number = number
        self.client = client
        self.open = True
        self._packet_id = 0
        self.up_ms = self.down_ms = 0

    def subscribe(self, *filters: str, retain_as_published: bool = False) -> None:
        """Subscribe with QoS 1."""
        requests = tuple(
            SubscriptionRequest(item, qos=1, retain_as_published=retain_as_published)
            for item in filters
        )
        self._network.send_up(self, Subscribe(self._take_packet_id(), requests))

    def unsubscribe(self, *filters: str) -> None:
        """Give subscriptions up."""
        self._network.send_up(self, Unsubscribe(self._take_packet_id(), filters))

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Publish with QoS 1."""
        packet = Publish(topic, payload, qos=1, retain=retain, packet_id=self._take_packet_id())
        self._network.send_up(self, packet)

    def _take_packet_id(self) -> int:
        self._packet_id = self._packet_id % 0xFFFF + 1
        return self._packet_id


class Network:
    """Carries packets between links and the one broker of a world."""

    def __init__(self, kernel: Kernel, chance: random.Random) -> None:
        self._kernel = kernel
        self._chance = chance
        self._links: dict[int, Link] = {}
        self._numbers = 0
        self.broker = BrokerCore(_BROKER_LIMITS)
        self.messages = 0
        self.bytes_delivered = 0

    def connect(self, client: Client, connect: Connect) -> Link:
        """Open a connection; the client is told when the broker accepted it."""
        self._numbers += 1
        link = Link(self, self._numbers, client)
        self._links[link.number] = link
        self._perform(self.broker.opened(link.number, self._kernel.now_ms))
        self.send_up(link, connect)
        return link

    def lose(self, link: Link) -> None:
        """Cut a connection without a goodbye: the broker publishes the last will."""
        if link.open:
            self._forget(link.number)
            self._perform(self.broker.lost(link.number, self._kernel.now_ms))

    def send_up(self, link: Link, packet: Packet) -> None:
        """Send a packet to the broker."""
        link.up_ms = max(link.up_ms, self._kernel.now_ms + self._delay_ms())
        self._kernel.at(link.up_ms, lambda: self._arrive_up(link, packet))

    def _arrive_up(self, link: Link, packet: Packet) -> None:
        if link.open:
            self._perform(self.broker.received(link.number, packet, self._kernel.now_ms))

    def _perform(self, outputs: list[Output]) -> None:
        for output in outputs:
            link = self._links.get(output.connection)
            if link is None:
                continue
            if isinstance(output, Close):
                self._forget(output.connection)
            elif isinstance(output, Deliver):
                self.messages += 1
                self.bytes_delivered += output.frame.size_bytes
                self._send_down(link, output.frame.publish, output.packet_id)
            elif isinstance(output.packet, ConnAck):
                self._send_down(link, output.packet, 0)

    def _send_down(self, link: Link, packet: Publish | ConnAck, packet_id: int) -> None:
        link.down_ms = max(link.down_ms, self._kernel.now_ms + self._delay_ms())
        self._kernel.at(link.down_ms, lambda: self._arrive_down(link, packet, packet_id))

    def _arrive_down(self, link: Link, packet: Publish | ConnAck, packet_id: int) -> None:
        if not link.open:
            return
        if isinstance(packet, ConnAck):
            link.client.connected()
            return
        link.client.message(packet.topic, packet.payload)
        if packet_id:
            self.send_up(link, PubAck(packet_id))

    def _forget(self, number: int) -> None:
        link = self._links.pop(number)
        link.open = False
        self._kernel.after(0, link.client.closed)

    def _delay_ms(self) -> int:
        return LEAST_DELAY_MS + int(self._chance.expovariate(1 / MEAN_JITTER_MS))
