"""The embedded broker on a socket: an asyncio shell around ``core``.

Decides where it may listen (loopback, unless TLS and authentication are configured), how bytes
are written (once per connection and turn of the event loop) and when a reader is too slow to
keep. Leaves out every rule of MQTT.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ipaddress
import ssl
from collections.abc import Callable
from dataclasses import asdict

from fleet_server.broker.codec import encode
from fleet_server.broker.core import BrokerCore
from fleet_server.broker.decoder import Decoder
from fleet_server.broker.errors import InsecureListenerError, PacketError
from fleet_server.broker.limits import KIB, Limits
from fleet_server.broker.outputs import Close, Deliver, Output
from fleet_server.broker.policy import AllowAll, PeerCertificate, Policy

_TICK_S = 1.0
_BACKLOG = 4096  # a fleet that reconnects at once
_HIGH_WATER_BYTES = 256 * KIB  # above it messages wait in the core's bounded queue
_FLUSH_CONNECTIONS = 64  # that have something to be written, before the turn of the loop ends
_RECEIVE_BUFFER_BYTES = 64 * KIB
_CLOSE_GRACE_S = 5.0  # for a peer to take its last bytes and to close its side
_STOP_GRACE_S = 1.0  # the same while the broker stops


class EmbeddedBroker:
    """A broker of this process. ``clock`` returns monotonic milliseconds.

    Not thread-safe: everything happens in the event loop that called ``start``.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        clock: Callable[[], int],
        limits: Limits | None = None,
        policy: Policy | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Port 0 takes a free one. Raises ``InsecureListenerError`` (see ``check_exposure``)."""
        self._policy: Policy = policy or AllowAll()
        check_exposure(host, tls, self._policy)
        self.host = host
        self.port = port
        self._clock = clock
        self._tls = tls
        self._core = BrokerCore(limits, self._policy)
        self._connections: dict[int, _Connection] = {}
        self._last_connection = 0
        self._dirty: list[_Connection] = []
        # asyncio fills and hands over a connection's bytes in one step, so one buffer serves all:
        # a fresh one per read costs more than the read.
        self.receive_buffer = memoryview(bytearray(_RECEIVE_BUFFER_BYTES))
        self._server: asyncio.Server | None = None
        self._tick_timer: asyncio.TimerHandle | None = None
        self._open_transports = 0
        self._received_bytes = self._sent_bytes = 0
        self._all_closed = asyncio.Event()

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mqtt' if self._tls is None else 'mqtts'}://{host}:{self.port}"

    async def start(self) -> None:
        """Binds and listens. Raises ``OSError`` where the address cannot be had."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Connection(self), self.host, self.port, ssl=self._tls, backlog=_BACKLOG
        )
        self.port = self._server.sockets[0].getsockname()[1]
        self._tick_timer = loop.call_later(_TICK_S, self._tick)

    async def stop(self) -> None:
        """Tells every client (Server shutting down), closes them and the port."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        if self._tick_timer is not None:
            self._tick_timer.cancel()
        connections = list(self._connections.values())
        self._apply(self._core.shut_down(self._clock()))
        if self._open_transports:
            self._all_closed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._all_closed.wait(), _STOP_GRACE_S)
        for connection in connections:
            connection.transport.abort()

    def expel(self, identity: str, *, clears: str = "") -> None:
        """Ends every connection of an identity, from the event loop; see ``BrokerCore.expel``."""
        self._apply(self._core.expel(identity, self._clock(), clears=clears))

    def statistics(self) -> dict[str, int]:
        """Counters since the start, and how many connections and messages there are now."""
        core = self._core
        return asdict(core.statistics) | {
            "received_bytes": self._received_bytes,
            "sent_bytes": self._sent_bytes,
            "connections": core.connections,
            "subscriptions": core.subscriptions,
            "retained_messages": core.retained_messages,
            "retained_bytes": core.retained_bytes,
        }

    # -- events of the sockets ---------------------------------------------------------------

    def _opened(self, connection: _Connection) -> None:
        self._open_transports += 1
        if self._server is None:
            # Its handshake was under way while the broker stopped.
            connection.closed = True
            connection.transport.abort()
            return
        self._last_connection += 1
        connection.number = self._last_connection
        self._connections[connection.number] = connection
        certificate = _certificate(connection.transport)
        self._apply(self._core.opened(connection.number, self._clock(), certificate))

    def _received(self, connection: _Connection, data: bytes) -> None:
        core, now_ms = self._core, self._clock()
        self._received_bytes += len(data)
        try:
            for packet in connection.decoder.feed(data):
                self._apply(core.received(connection.number, packet, now_ms))
                if connection.closed:
                    return
        except PacketError as error:
            self._apply(core.malformed(connection.number, error, now_ms))

    def _lost(self, connection: _Connection) -> None:
        self._open_transports -= 1
        if self._open_transports == 0:
            self._all_closed.set()
        connection.closed = True
        if self._connections.pop(connection.number, None) is not None:
            self._apply(self._core.lost(connection.number, self._clock()))

    def _congested(self, connection: _Connection) -> None:
        self._core.congested(connection.number)

    def _relieved(self, connection: _Connection) -> None:
        self._apply(self._core.relieved(connection.number, self._clock()))

    def _tick(self) -> None:
        self._apply(self._core.tick(self._clock()))
        self._tick_timer = asyncio.get_running_loop().call_later(_TICK_S, self._tick)

    # -- what the core decided ---------------------------------------------------------------

    def _apply(self, outputs: list[Output]) -> None:
        connections = self._connections
        for output in outputs:
            connection = connections.get(output.connection)
            if connection is None:
                continue
            kind = type(output)
            if kind is Close:
                self._close(connection)
                continue
            if kind is Deliver:
                data = output.frame.encode(output.packet_id)  # type: ignore[union-attr]
            else:
                data = encode(output.packet, output.version)  # type: ignore[union-attr]
            if not connection.outgoing:
                if not self._dirty:
                    # One system call per connection and turn of the loop, not one per packet:
                    # a server that takes in a fleet's reports gets many of them at once.
                    asyncio.get_running_loop().call_soon(self._flush)
                elif len(self._dirty) >= _FLUSH_CONNECTIONS:
                    # A broadcast: let the first receivers work while the last are written to.
                    self._flush()
                self._dirty.append(connection)
            connection.outgoing.append(data)

    def _flush(self) -> None:
        dirty, self._dirty = self._dirty, []
        limit_bytes = self._core.limits.max_write_buffer_bytes
        for connection in dirty:
            self._sent_bytes += connection.flush()
            if connection.transport.get_write_buffer_size() > limit_bytes:
                # It does not even read its acknowledgements. Its will is published.
                self._core.statistics.slow_clients_disconnected += 1
                connection.transport.abort()

    def _close(self, connection: _Connection) -> None:
        """Ends our side and lets the peer end its own, within a grace period.

        Closing at once while the peer is still sending would reset the connection, and the
        reset would destroy the DISCONNECT that tells the peer why.
        """
        connection.closed = True
        del self._connections[connection.number]
        self._sent_bytes += connection.flush()
        transport = connection.transport
        if transport.can_write_eof():
            # A peer that has just reset the connection leaves no side to end.
            with contextlib.suppress(OSError):
                transport.write_eof()
        else:
            transport.close()  # TLS has no half-closed connections
        asyncio.get_running_loop().call_later(_CLOSE_GRACE_S, transport.abort)


class _Connection(asyncio.BufferedProtocol):
    """One socket: its decoder, and what is to be written at the end of this turn."""

    __slots__ = ("_broker", "closed", "decoder", "number", "outgoing", "transport")
    transport: asyncio.Transport

    def __init__(self, broker: EmbeddedBroker) -> None:
        self._broker = broker
        self.number = 0
        self.closed = False
        self.decoder = Decoder(broker._core.limits.max_packet_size_bytes)
        self.outgoing: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.set_write_buffer_limits(high=_HIGH_WATER_BYTES)
        self._broker._opened(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._broker.receive_buffer

    def buffer_updated(self, nbytes: int) -> None:
        if not self.closed:
            self._broker._received(self, bytes(self._broker.receive_buffer[:nbytes]))

    def connection_lost(self, exc: Exception | None) -> None:
        self._broker._lost(self)

    def pause_writing(self) -> None:
        self._broker._congested(self)

    def resume_writing(self) -> None:
        self._broker._relieved(self)

    def flush(self) -> int:
        """Write what was collected; return how many bytes that are."""
        outgoing = self.outgoing
        if not outgoing:
            return 0
        self.outgoing = []
        data = outgoing[0] if len(outgoing) == 1 else b"".join(outgoing)
        self.transport.write(data)
        return len(data)


def check_exposure(host: str, tls: ssl.SSLContext | None, policy: Policy) -> None:
    """Raises ``InsecureListenerError`` where a network could reach an open broker."""
    try:
        is_loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback and (tls is None or not policy.authenticates):
        raise InsecureListenerError(
            f"the embedded broker listens on {host!r} only with TLS and authentication; "
            "configure both, or use 127.0.0.1"
        )


def _certificate(transport: asyncio.Transport) -> PeerCertificate | None:
    """The client's certificate, if it has shown one: TLS lets none pass that it cannot verify."""
    tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
    data = tls.getpeercert(binary_form=True) if tls is not None else None
    if tls is None or data is None:
        return None
    subject = (tls.getpeercert() or {}).get("subject", ())
    names = [value for part in subject for key, value in part if key == "commonName"]  # type: ignore[str-unpack]
    name = str(names[0]) if names else ""
    return PeerCertificate(name, hashlib.sha256(data).hexdigest(), data)
