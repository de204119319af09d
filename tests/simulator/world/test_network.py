"""The virtual network against the real broker core."""

import random

from fleet_server.broker.packets import Connect, Will
from simulator.world.kernel import Kernel
from simulator.world.network import Link, Network


class Listener:
    """A client that remembers everything."""

    def __init__(self) -> None:
        self.up = False
        self.messages: list[tuple[str, bytes]] = []

    def connected(self) -> None:
        self.up = True

    def message(self, topic: str, payload: bytes) -> None:
        self.messages.append((topic, payload))

    def closed(self) -> None:
        self.up = False


def connected(
    kernel: Kernel, network: Network, name: str, will: Will | None = None
) -> tuple[Listener, Link]:
    listener = Listener()
    link = network.connect(listener, Connect(client_id=name, will=will))
    assert kernel.run(lambda: listener.up, kernel.now_ms + 10_000)
    return listener, link


def world() -> tuple[Kernel, Network]:
    kernel = Kernel(0)
    return kernel, Network(kernel, random.Random(1))


def test_messages_of_one_link_overtake_each_other() -> None:
    kernel, network = world()
    reader, reader_link = connected(kernel, network, "reader")
    _, writer = connected(kernel, network, "writer")
    reader_link.subscribe("a/#")
    kernel.run(lambda: False, kernel.now_ms + 1_000)
    for number in range(200):
        writer.publish("a/b", str(number).encode())
    assert kernel.run(lambda: len(reader.messages) == 200, kernel.now_ms + 60_000)
    assert [int(payload) for _, payload in reader.messages] == list(range(200))


def test_late_subscriber_misses_the_retained_message() -> None:
    kernel, network = world()
    _, writer = connected(kernel, network, "writer")
    writer.publish("a/b", b"kept", retain=True)
    kernel.run(lambda: False, kernel.now_ms + 1_000)
    reader, link = connected(kernel, network, "reader")
    link.subscribe("a/+")
    assert kernel.run(lambda: bool(reader.messages), kernel.now_ms + 1_000)
    assert reader.messages == [("a/b", b"kept")]


def test_lost_connection_passes_for_a_living_one() -> None:
    kernel, network = world()
    reader, link = connected(kernel, network, "reader")
    link.subscribe("presence")
    kernel.run(lambda: False, kernel.now_ms + 1_000)
    will = Will("presence", b"gone", qos=1)
    victim, victim_link = connected(kernel, network, "victim", will)
    network.lose(victim_link)
    assert kernel.run(lambda: bool(reader.messages), kernel.now_ms + 1_000)
    assert reader.messages == [("presence", b"gone")]
    assert not victim.up
    victim_link.publish("presence", b"from the grave")
    kernel.run(lambda: False, kernel.now_ms + 1_000)
    assert len(reader.messages) == 1
