"""The embedded broker as two fuzz targets: its codec both ways, and the core behind it."""

from __future__ import annotations

from msgspec.structs import replace

from fleet_server.broker.codec import encode
from fleet_server.broker.core import BrokerCore
from fleet_server.broker.decoder import Decoder
from fleet_server.broker.errors import PacketError
from fleet_server.broker.limits import Limits
from fleet_server.broker.outputs import Close, Deliver, Output, Send
from fleet_server.broker.packet_types import MQTT_5
from fleet_server.broker.packets import (
    Connect,
    Disconnect,
    Packet,
    PingReq,
    PubAck,
    Publish,
    Subscribe,
    SubscriptionRequest,
    Unsubscribe,
    Will,
)
from fleet_server.broker.properties import NO_PROPERTIES

__all__ = ["PacketError", "run_codec", "run_core", "seeds"]

PACKET_BYTES = 16 * 1024
MQTT_3_1_1 = 4


def seeds() -> list[bytes]:
    """Whole conversations of a client, in both versions of the protocol."""
    found = []
    for version in (MQTT_3_1_1, MQTT_5):
        said: list[Packet] = [
            Connect(
                client_id="device-1",
                version=version,
                clean_start=True,
                keep_alive_s=60,
                will=Will("fleet/v1/home/presence", b"gone", 1, True, NO_PROPERTIES),
                properties=NO_PROPERTIES,
                username="device-1",
            ),
            Subscribe(1, (SubscriptionRequest("fleet/v1/home/#", 1),), NO_PROPERTIES),
            Publish("fleet/v1/home/stop", b"payload", 1, True, False, 7, NO_PROPERTIES),
            PubAck(1),
            PingReq(),
            Unsubscribe(2, ("fleet/v1/home/#",), NO_PROPERTIES),
            Disconnect(),
        ]
        found.append(b"".join(encode(packet, version) for packet in said))
    return found


def run_codec(data: bytes) -> object:
    """What can be read can be written, and means the same when it is read again."""
    decoder = Decoder(PACKET_BYTES)
    for packet in decoder.feed(data):
        version = decoder.version
        again = encode(packet, version)
        (found,) = Decoder(4 * PACKET_BYTES, version).feed(again)
        assert found == packet, f"{packet} became {found}"
    return None


def run_core(data: bytes) -> object:
    """A stranger's bytes next to somebody who listens to everything; nobody else is cut off."""
    core = BrokerCore(Limits())
    listener = 1
    core.opened(listener, 0)
    hello = Connect(
        client_id="listener",
        version=MQTT_5,
        clean_start=True,
        keep_alive_s=60,
        will=None,
        properties=NO_PROPERTIES,
        username=None,
    )
    _written(core.received(listener, hello, 0))
    everything = Subscribe(1, (SubscriptionRequest("#", 1),), NO_PROPERTIES)
    _written(core.received(listener, everything, 0))
    _written(core.opened(2, 1))
    decoder = Decoder(PACKET_BYTES)
    closed = False
    try:
        for packet in decoder.feed(data):
            outputs = core.received(2, packet, 2)
            _written(outputs)
            closed = any(isinstance(item, Close) and item.connection == 2 for item in outputs)
            if closed:
                break
    except PacketError as error:
        _written(core.malformed(2, error, 3))
        closed = True
    if not closed:
        _written(core.lost(2, 4))
    _written(core.tick(5))
    # Nobody else is cut off, but by a name that is his.
    assert core.connections == 1 or b"listener" in data
    return None


def _written(outputs: list[Output]) -> None:
    for item in outputs:
        if isinstance(item, Send):
            encode(item.packet, item.version)
        elif isinstance(item, Deliver):
            # As the shell does: the frame is shared, each receiver has an identifier of its own.
            encode(replace(item.frame.publish, packet_id=item.packet_id), MQTT_5)
