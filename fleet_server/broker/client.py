"""A lean MQTT 5 client for asyncio: ten thousand of them fit in one process.

Decides how live fleets and benchmarks talk to a broker: QoS 0 and 1, a will, keep-alive, one
callback per message. Leaves out reconnecting (its owner knows when), sessions and QoS 2.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from fleet_server.broker.codec import encode
from fleet_server.broker.decoder import Decoder
from fleet_server.broker.errors import (
    ConnectionLostError,
    ConnectionRefusedByBrokerError,
    PacketError,
    RequestRefusedError,
)
from fleet_server.broker.limits import KIB, MIB
from fleet_server.broker.packet_types import MQTT_5
from fleet_server.broker.packets import (
    ConnAck,
    Connect,
    Disconnect,
    Packet,
    PingReq,
    PubAck,
    Publish,
    SubAck,
    Subscribe,
    SubscriptionRequest,
    UnsubAck,
    Unsubscribe,
    Will,
)
from fleet_server.broker.properties import NO_PROPERTIES, Properties
from fleet_server.broker.reason_codes import ReasonCode

_PUBACK_HEADER = b"\x40\x02"


_RECEIVE_BUFFER_BYTES = 64 * KIB
_OF_THREAD = threading.local()


def _receive_buffer() -> memoryview:
    """One for all clients of a thread: asyncio fills and hands it over in one step.

    The buffer that ``asyncio.Protocol`` would allocate for each read costs more than the read.
    """
    try:
        buffer: memoryview = _OF_THREAD.buffer
    except AttributeError:
        buffer = _OF_THREAD.buffer = memoryview(bytearray(_RECEIVE_BUFFER_BYTES))
    return buffer


def _ignore_message(_publish: Publish) -> None:
    pass


def _ignore_end(_reason: ReasonCode | None) -> None:
    pass


class MqttClient(asyncio.BufferedProtocol):
    """One connection at a time, clean start. Not thread-safe.

    ``on_message`` runs inside the event loop and must not block; a QoS 1 message is
    acknowledged after it returned. ``on_end`` hears once of a connection that ended other than
    by ``disconnect``, with the broker's reason where it gave one.
    """

    __slots__ = (
        "_acknowledged", "_answers", "_connack", "_decoder", "_end_reason", "_ended",
        "_established", "_heard", "_keep_alive_timer", "_last_packet_id", "_room", "_said",
        "_send_quota", "_transport", "client_id", "keep_alive_s", "max_packet_size_bytes",
        "on_end", "on_message", "password", "username", "will",
    )  # fmt: skip

    def __init__(
        self,
        client_id: str,
        *,
        on_message: Callable[[Publish], None] = _ignore_message,
        on_end: Callable[[ReasonCode | None], None] = _ignore_end,
        keep_alive_s: int = 60,
        will: Will | None = None,
        username: str | None = None,
        password: bytes | None = None,
        max_packet_size_bytes: int = MIB,
    ) -> None:
        self.client_id = client_id
        self.on_message = on_message
        self.on_end = on_end
        self.keep_alive_s = keep_alive_s
        self.will = will
        self.username = username
        self.password = password
        self.max_packet_size_bytes = max_packet_size_bytes
        self._transport: asyncio.Transport | None = None
        self._connack: asyncio.Future[ConnAck] | None = None
        self._ended: asyncio.Future[None] | None = None
        self._end_reason: ReasonCode | None = None
        # What waits for an answer: packet identifier -> its future.
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._acknowledged: list[bytes] = []
        self._room: deque[asyncio.Future[None]] = deque()
        self._send_quota = 0
        self._last_packet_id = 0
        self._keep_alive_timer: asyncio.TimerHandle | None = None
        self._said = self._heard = self._established = False

    @property
    def connected(self) -> bool:
        return self._transport is not None

    async def connect(
        self, host: str, port: int, *, tls: ssl.SSLContext | None = None, timeout_s: float = 30.0
    ) -> ConnAck:
        """Opens the connection and waits for CONNACK.

        Raises ``OSError``, ``TimeoutError``, ``ConnectionLostError`` or
        ``ConnectionRefusedByBrokerError``.
        """
        loop = asyncio.get_running_loop()
        connect = Connect(
            client_id=self.client_id,
            keep_alive_s=self.keep_alive_s,
            username=self.username,
            password=self.password,
            will=self.will,
        )
        self._decoder = Decoder(self.max_packet_size_bytes)
        self._end_reason = None
        self._connack = loop.create_future()
        self._ended = loop.create_future()
        try:
            async with asyncio.timeout(timeout_s):
                await loop.create_connection(lambda: self, host, port, ssl=tls)
                self._write(encode(connect, MQTT_5))
                connack = await self._connack
        except BaseException:
            self.drop()
            raise
        if connack.reason.is_failure:
            self.drop()
            raise ConnectionRefusedByBrokerError(connack.reason)
        self._established = True
        self._send_quota = connack.properties.receive_maximum or 0xFFFF
        self.client_id = connack.properties.assigned_client_identifier or self.client_id
        keep_alive_s = connack.properties.server_keep_alive or self.keep_alive_s
        if keep_alive_s:
            self._keep_alive(keep_alive_s / 2)
        return connack

    async def subscribe(self, *requests: SubscriptionRequest) -> tuple[ReasonCode, ...]:
        """The granted codes, in order. Raises ``RequestRefusedError`` if any was refused."""
        if any(request.qos > 1 for request in requests):
            raise PacketError(ReasonCode.QOS_NOT_SUPPORTED, "this client does not do QoS 2")
        packet_id, answer = self._expect_answer()
        self._send(Subscribe(packet_id, requests))
        suback: SubAck = await answer
        return _granted(suback.reasons)

    async def unsubscribe(self, *topic_filters: str) -> tuple[ReasonCode, ...]:
        """Raises ``RequestRefusedError`` if any was refused."""
        packet_id, answer = self._expect_answer()
        self._send(Unsubscribe(packet_id, topic_filters))
        unsuback: UnsubAck = await answer
        return _granted(unsuback.reasons)

    def send(
        self,
        topic: str,
        payload: bytes,
        *,
        retain: bool = False,
        properties: Properties = NO_PROPERTIES,
    ) -> None:
        """Publishes with QoS 0: at most once, no answer."""
        self._send(Publish(topic, payload, retain=retain, properties=properties))

    async def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        retain: bool = False,
        properties: Properties = NO_PROPERTIES,
    ) -> ReasonCode:
        """Publishes with QoS 1 and waits for the broker's acknowledgement.

        Waits first while the broker's Receive Maximum is reached (section 4.9). Raises
        ``RequestRefusedError`` or ``ConnectionLostError``.
        """
        while len(self._answers) >= self._send_quota > 0:
            room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._room.append(room)
            await room
        packet_id, answer = self._expect_answer()
        self._send(Publish(topic, payload, 1, retain, False, packet_id, properties))
        puback: PubAck = await answer
        return _granted((puback.reason,))[0]

    async def disconnect(self) -> None:
        """A normal disconnection: the broker discards the will. Waits for the socket to close."""
        if self._transport is None or self._ended is None:
            return
        self._established = False
        self._send(Disconnect())
        self._transport.close()
        await self._ended

    def drop(self) -> None:
        """Cuts the connection as a power failure would: the broker publishes the will."""
        if self._transport is not None:
            self._transport.abort()

    # -- asyncio.BufferedProtocol ------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        return _receive_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        data = bytes(_receive_buffer()[:nbytes])
        self._heard = True
        try:
            for packet in self._decoder.feed(data):
                if type(packet) is Publish:
                    self.on_message(packet)
                    if packet.qos:
                        if not self._acknowledged:
                            # Other connections of this process are read before any is answered.
                            asyncio.get_running_loop().call_soon(self._acknowledge)
                        self._acknowledged.append(packet.packet_id.to_bytes(2, "big"))
                else:
                    self._on_answer(packet)
        except PacketError as error:
            self._end_reason = error.reason
            self.drop()
            return

    def _acknowledge(self) -> None:
        """All acknowledgements of this turn of the loop in one system call."""
        identifiers, self._acknowledged = self._acknowledged, []
        if self._transport is not None:
            self._write(b"".join([_PUBACK_HEADER + identifier for identifier in identifiers]))

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._keep_alive_timer is not None:
            self._keep_alive_timer.cancel()
        error = ConnectionLostError("the connection to the broker ended", self._end_reason)
        waiting = [*self._answers.values(), *self._room]
        if self._connack is not None:
            waiting.append(self._connack)
        self._answers.clear()
        self._room.clear()
        for future in waiting:
            if not future.done():
                future.set_exception(error)
                future.exception()  # its owner may have gone: that is no news to the log
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)
        if self._established:
            self._established = False
            self.on_end(self._end_reason)

    # -- inside ------------------------------------------------------------------------------

    def _on_answer(self, packet: Packet) -> None:
        if isinstance(packet, PubAck | SubAck | UnsubAck):
            answer = self._answers.pop(packet.packet_id, None)
            if answer is not None and not answer.done():
                answer.set_result(packet)
            while self._room:
                room = self._room.popleft()
                if not room.done():
                    room.set_result(None)
                    break
        elif isinstance(packet, ConnAck):
            if self._connack is not None and not self._connack.done():
                self._connack.set_result(packet)
        elif isinstance(packet, Disconnect):
            self._end_reason = packet.reason

    def _expect_answer(self) -> tuple[int, asyncio.Future[Any]]:
        while True:
            self._last_packet_id = self._last_packet_id % 0xFFFF + 1
            if self._last_packet_id not in self._answers:
                break
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._answers[self._last_packet_id] = answer
        return self._last_packet_id, answer

    def _send(self, packet: Packet) -> None:
        self._write(encode(packet, MQTT_5))

    def _write(self, data: bytes) -> None:
        if self._transport is None:
            raise ConnectionLostError("not connected")
        self._said = True
        self._transport.write(data)

    def _keep_alive(self, interval_s: float) -> None:
        """Two silences in a row end the connection; one of our own is broken by PINGREQ."""
        loop = asyncio.get_running_loop()
        self._keep_alive_timer = loop.call_later(interval_s, self._check_silence, interval_s, False)

    def _check_silence(self, interval_s: float, asked: bool) -> None:
        if asked and not self._heard:
            self._end_reason = ReasonCode.KEEP_ALIVE_TIMEOUT
            self.drop()
            return
        asks = not self._said or not self._heard
        if asks:
            with contextlib.suppress(ConnectionLostError):
                self._send(PingReq())
        self._said = self._heard = False
        self._keep_alive_timer = asyncio.get_running_loop().call_later(
            interval_s, self._check_silence, interval_s, asks
        )


def _granted(reasons: tuple[ReasonCode, ...]) -> tuple[ReasonCode, ...]:
    for reason in reasons:
        if reason.is_failure:
            raise RequestRefusedError(reason)
    return reasons
