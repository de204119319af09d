"""Packets out of a stream of bytes, however the network cut it.

Decides where a packet begins and ends, and refuses one above the size cap as soon as its fixed
header is known, before its body is kept. Leaves out the body (``codec``).
"""

from __future__ import annotations

from collections.abc import Iterator

from fleet_server.broker.codec import decode
from fleet_server.broker.errors import PacketError
from fleet_server.broker.packet_types import MQTT_5, PacketType
from fleet_server.broker.packets import Connect, Packet, PubAck
from fleet_server.broker.reason_codes import ReasonCode
from fleet_server.broker.wire_types import malformed

_PUBACK_BYTE = PacketType.PUBACK << 4


class Decoder:
    """Feed bytes, take packets. After a ``PacketError`` the stream has no meaning any more.

    ``version`` follows the CONNECT that passes through, or is given by a client that sent it.
    """

    __slots__ = ("_kept", "_max_packet_size_bytes", "_wanted_bytes", "version")

    def __init__(self, max_packet_size_bytes: int, version: int = MQTT_5) -> None:
        self._max_packet_size_bytes = max_packet_size_bytes
        self._kept = bytearray()
        self._wanted_bytes = 0
        self.version = version

    def feed(self, data: bytes) -> Iterator[Packet]:
        """All packets that ``data`` completes, in order.

        A generator, so that packets before a malformed one are handled before its
        ``PacketError`` is raised, and a CONNECT's version holds for what follows it. It must
        be run to its end before the next call.
        """
        if self._kept:
            self._kept += data
            if len(self._kept) < self._wanted_bytes:
                return
            data = bytes(self._kept)
            self._kept.clear()
        position, size_bytes = 0, len(data)
        while size_bytes - position >= 2:
            remaining = data[position + 1]
            start = position + 2
            if remaining >= 0x80:
                found = _long_remaining_length(data, position + 1)
                if found is None:
                    break
                remaining, start = found
            end = start + remaining
            if end - position > self._max_packet_size_bytes:
                raise PacketError(
                    ReasonCode.PACKET_TOO_LARGE,
                    f"{end - position} bytes where {self._max_packet_size_bytes} are allowed",
                )
            if end > size_bytes:
                self._wanted_bytes = end - position
                self._kept += data[position:]
                return
            first_byte = data[position]
            if first_byte == _PUBACK_BYTE and remaining == 2 and (data[start] or data[start + 1]):
                # The most frequent packet after PUBLISH, without a detour.
                yield PubAck(data[start] << 8 | data[start + 1])
            else:
                packet = decode(first_byte, data[start:end], self.version)
                if type(packet) is Connect:
                    self.version = packet.version
                yield packet
            position = end
        self._wanted_bytes = 0
        self._kept += data[position:]


def _long_remaining_length(data: bytes, position: int) -> tuple[int, int] | None:
    """Remaining length of two to four bytes and the position after it; None: not all there."""
    value = 0
    for index in range(4):
        if position + index >= len(data):
            return None
        byte = data[position + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            if byte == 0:
                raise malformed("a remaining length longer than needed")  # 1.5.5
            return value, position + index + 1
    raise malformed("a remaining length of more than four bytes")
