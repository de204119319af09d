"""The data types of MQTT (section 1.5): integers, strings, binary data, string pairs.

Decides how each is read from a bounded body and written. Every read checks the bound first;
a breach is ``PacketError`` with Malformed Packet. Leaves out which packet holds what.
"""

from __future__ import annotations

from fleet_server.broker.errors import PacketError
from fleet_server.broker.reason_codes import ReasonCode

MAX_VARIABLE_BYTE_INTEGER = 268_435_455  # section 1.5.5: four bytes of seven bits


def malformed(message: str) -> PacketError:
    """The error of a body that cannot be parsed (section 4.13.1)."""
    return PacketError(ReasonCode.MALFORMED_PACKET, message)


def protocol_error(message: str) -> PacketError:
    """The error of a body that parses and is still not allowed (section 4.13.1)."""
    return PacketError(ReasonCode.PROTOCOL_ERROR, message)


class Reader:
    """A cursor over one packet's body; ``end`` bounds every read."""

    __slots__ = ("body", "end", "position")

    def __init__(self, body: bytes, position: int = 0) -> None:
        self.body = body
        self.position = position
        self.end = len(body)

    def at_end(self) -> bool:
        return self.position >= self.end

    def expect_end(self) -> None:
        if self.position != self.end:
            raise malformed(f"{self.end - self.position} bytes too many in the packet")

    def take(self, size_bytes: int) -> bytes:
        stop = self.position + size_bytes
        if stop > self.end:
            raise malformed("the packet ends inside a field")
        data = self.body[self.position : stop]
        self.position = stop
        return data

    def rest(self) -> bytes:
        return self.take(self.end - self.position)

    def byte(self) -> int:
        return self.take(1)[0]

    def two_bytes(self) -> int:
        return int.from_bytes(self.take(2), "big")

    def four_bytes(self) -> int:
        return int.from_bytes(self.take(4), "big")

    def variable_byte_integer(self) -> int:
        value = 0
        for shift in (0, 7, 14, 21):
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if byte == 0 and shift:
                    raise malformed("a variable byte integer longer than needed")
                return value
        raise malformed("a variable byte integer of more than four bytes")

    def binary(self) -> bytes:
        return self.take(self.two_bytes())

    def string(self) -> str:
        return decode_string(self.binary())

    def string_pair(self) -> tuple[str, str]:
        return self.string(), self.string()


def decode_string(data: bytes) -> str:
    """UTF-8 without surrogates and without U+0000 (section 1.5.4)."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise malformed("a string that is not UTF-8") from error
    if "\0" in text:
        raise malformed("a string with the null character")
    return text


def encode_variable_byte_integer(value: int) -> bytes:
    """Raises ``PacketError`` (Packet too large) above 268,435,455."""
    if 0 <= value < 0x80:
        return bytes((value,))
    if not 0 <= value <= MAX_VARIABLE_BYTE_INTEGER:
        raise PacketError(ReasonCode.PACKET_TOO_LARGE, f"{value} exceeds four bytes of seven bits")
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def encode_integer(value: int, size_bytes: int) -> bytes:
    try:
        return value.to_bytes(size_bytes, "big")
    except OverflowError as error:
        raise malformed(f"{value} does not fit into {size_bytes} bytes") from error


def encode_binary(data: bytes) -> bytes:
    if len(data) > 0xFFFF:
        raise malformed(f"{len(data)} bytes do not fit into a field of at most 65535")
    return len(data).to_bytes(2, "big") + data


def encode_string(text: str) -> bytes:
    if "\0" in text:
        raise malformed("a string with the null character")
    try:
        return encode_binary(text.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise malformed("a string that UTF-8 cannot hold") from error


def encode_string_pair(pair: tuple[str, str]) -> bytes:
    return encode_string(pair[0]) + encode_string(pair[1])


def read_reason(reader: Reader, permitted: frozenset[int]) -> ReasonCode:
    code = reader.byte()
    if code not in permitted:
        raise malformed(f"reason code 0x{code:02x} is not one of this packet's")
    return ReasonCode(code)


def frame(first_byte: int, *parts: bytes) -> bytes:
    """A whole packet: first byte, remaining length, body (2.1)."""
    body = b"".join(parts)
    return bytes((first_byte,)) + encode_variable_byte_integer(len(body)) + body
