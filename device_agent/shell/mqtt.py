"""The connection to the broker: one attempt at a time, each with the will that the core gave it.

Decides when the next attempt is made (full jitter, growing while connections do not last) and
turns what happens into the core's events. One thread does all of a connection's input and output:
paho's own loop reconnects by itself, with the old will, and its writes from other threads than the
loop's may interleave. What is said and subscribed is decided in the core.
"""

import contextlib
import logging
import os
import select
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from device_agent.core.events import Connected, Disconnected, Event, Received
from device_agent.errors import IdentityUnusable
from device_agent.shell.clock import Clock, share_of
from device_agent.shell.tls import NotingSocket, Trouble, trouble_of
from fleet_contract import limits

FIRST_DELAY_MS = 500
LONGEST_DELAY_MS = 60_000
LASTING_MS = 10_000
"""A connection that lasted so long makes the next delay short again."""
KEEP_ALIVE_S = 30
CONNECT_S = 10.0
_WAITING_MESSAGES = 1000
HANG_UPS = 3
"""A broker that takes the handshake and hangs up so often in a row may mean the certificate: one on
Python's asyncio (3.11) closes before the alert that would say so is sent."""
_REFUSALS = frozenset({133, 134, 135, 138, 140})
"""Reason codes of MQTT 5: client id, name or password, not authorized, banned, bad method."""
_TURN_MS = 1000
"""paho wants to look after its keep-alive this often."""

_LOG = logging.getLogger(__name__)


class BrokerAddress:
    """Where a broker listens, from its URL. Raises ValueError if it is none."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname:
            raise ValueError(f"not an mqtt or mqtts address: {url[:200]!r}")
        self.secure = parts.scheme == "mqtts"
        self.host = parts.hostname
        self.port = parts.port or (8883 if self.secure else 1883)


class BrokerConnection:
    """Connects when told to and reports what comes of it. ``publish`` and the like are ignored
    while there is no connection: the core says everything again that matters.
    """

    def __init__(
        self,
        url: str,
        *,
        client_id: str,
        clock: Clock,
        emit: Callable[[Event], None],
        tls: Callable[[], ssl.SSLContext],
        notice: Callable[[Trouble | None], None] = lambda _: None,
    ) -> None:
        """Take the address; nothing is connected yet.

        Args:
            url: mqtt or mqtts.
            client_id: the device's name.
            clock: for delays.
            emit: takes the events; called from a thread of this connection.
            tls: the context of an mqtts connection, asked for at each attempt.
            notice: told what is wrong with anchors or certificate, before the event of that
                attempt, and None once the broker takes this device.

        Raises:
            ValueError: for a bad URL.
        """
        self._address = BrokerAddress(url)
        self._client_id = client_id
        self._clock = clock
        self._emit = emit
        self._tls = tls
        self._notice = notice
        self._hang_ups = 0
        self._accepted: bool | None = None  # None: the broker has not said
        self._trouble: Trouble | None = None
        self._failures = 0
        self._client: Client | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._waking = threading.Lock()
        self._waker = -1

    @property
    def connected(self) -> bool:
        client = self._client
        return client is not None and client.is_connected()

    def move_to(self, url: str) -> None:
        """Connect to another address from the next attempt on. Raises ValueError if it is none."""
        self._address = BrokerAddress(url)

    def hurry(self) -> None:
        """Let the next attempts come soon: what stood in the way is mended."""
        self._failures = 0

    def connect(self, will_topic: str, will_payload: bytes) -> None:
        """Try to connect, once, after a random part of the present delay; does not wait for it.

        The outcome is one event: Connected, and Disconnected when that has ended, or Disconnected
        alone.
        """
        if self._stopping.is_set():
            return
        limit_ms = min(LONGEST_DELAY_MS, FIRST_DELAY_MS << min(self._failures, 10))
        delay_ms = share_of(self._clock, limit_ms)
        self._thread = threading.Thread(
            target=self._run, args=(will_topic, will_payload, delay_ms), name="mqtt", daemon=True
        )
        self._thread.start()

    def publish(self, topic: str, payload: bytes, *, retain: bool) -> None:
        """Publish with QoS 1."""
        client = self._client
        if client is not None and client.is_connected():
            client.publish(topic, payload, qos=1, retain=retain)
            self._wake()

    def subscribe(self, filters: tuple[str, ...]) -> None:
        """Subscribe with QoS 1."""
        client = self._client
        if client is not None and client.is_connected():
            client.subscribe([(name, 1) for name in filters])
            self._wake()

    def unsubscribe(self, filters: tuple[str, ...]) -> None:
        client = self._client
        if client is not None and client.is_connected():
            client.unsubscribe(list(filters))
            self._wake()

    def stop(self, farewell: tuple[str, bytes] | None, *, wait_s: float = 3.0) -> None:
        """Say a last retained word, disconnect, and end the thread."""
        self._stopping.set()
        client, thread = self._client, self._thread
        if client is not None and client.is_connected():
            if farewell is not None:
                said = client.publish(*farewell, qos=1, retain=True)
                self._wake()
                # A connection that is just breaking: then the last will speaks.
                with contextlib.suppress(RuntimeError, ValueError):
                    said.wait_for_publish(wait_s)
            client.disconnect()
        self._wake()
        if thread is not None:
            thread.join(wait_s)

    # --- the connection's own thread -------------------------------------------------------------

    def _run(self, will_topic: str, will_payload: bytes, delay_ms: int) -> None:
        if self._stopping.wait(delay_ms / 1000):
            return
        self._failures += 1
        began_ns = self._clock.ticks_ns()
        self._accepted, self._trouble = None, None
        try:
            self._attempt(will_topic, will_payload)
        except (OSError, ValueError, IdentityUnusable) as error:
            self._trouble = trouble_of(error)
            _LOG.info("no connection to the broker: %s", error)
        except Exception:
            # A broker that breaks the protocol must not end the agent.
            _LOG.exception("the connection to the broker failed")
        self._client = None
        if self._clock.ticks_ns() - began_ns >= LASTING_MS * 1_000_000:
            self._failures = 0
        if self._trouble is not None:
            _LOG.warning("no connection to the broker: %s", self._trouble.value)
            self._notice(self._trouble)
        if not self._stopping.is_set():
            self._emit(Disconnected())

    def _attempt(self, will_topic: str, will_payload: bytes) -> None:
        """Connect, and serve the connection until it ends."""
        address = self._address
        client = self._new_client(address, will_topic, will_payload)
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.MaximumPacketSize = limits.MQTT_PACKET_BYTES
        self._client = client
        client.connect(
            address.host,
            address.port,
            keepalive=KEEP_ALIVE_S,
            clean_start=True,
            properties=properties,
        )
        line = client.socket()
        self._serve(client)
        if self._accepted is not None:
            self._hang_ups = 0
        elif isinstance(line, NotingSocket):
            self._hang_ups += 1
            if line.refused or self._hang_ups >= HANG_UPS:
                self._trouble = Trouble.REFUSED

    def _serve(self, client: Client) -> None:
        """Read and write until the connection is gone."""
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._waker = writer
        try:
            result = MQTTErrorCode.MQTT_ERR_SUCCESS
            while result is MQTTErrorCode.MQTT_ERR_SUCCESS and (sock := client.socket()):
                waiter = select.poll()
                waiter.register(reader, select.POLLIN)
                waiter.register(sock, select.POLLIN | (select.POLLOUT * client.want_write()))
                # What TLS has read already makes no socket readable.
                buffered = isinstance(sock, ssl.SSLSocket) and sock.pending() > 0
                ready = dict(waiter.poll(0 if buffered else _TURN_MS))
                if reader in ready:
                    os.read(reader, 4096)
                if buffered or ready.get(sock.fileno(), 0) & ~select.POLLOUT:
                    result = client.loop_read()
                if result is MQTTErrorCode.MQTT_ERR_SUCCESS and client.want_write():
                    result = client.loop_write()
                if result is MQTTErrorCode.MQTT_ERR_SUCCESS:
                    result = client.loop_misc()
                if self._stopping.is_set() and not (client.is_connected() or client.want_write()):
                    return
        finally:
            with self._waking:
                self._waker = -1
                os.close(reader)
                os.close(writer)

    def _wake(self) -> None:
        with self._waking, contextlib.suppress(BlockingIOError):
            if self._waker >= 0:
                os.write(self._waker, b"w")

    def _new_client(self, address: BrokerAddress, will_topic: str, will_payload: bytes) -> Client:
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            protocol=MQTTProtocolVersion.MQTTv5,
            reconnect_on_failure=False,
        )
        client.connect_timeout = CONNECT_S
        client.max_queued_messages_set(_WAITING_MESSAGES)
        if address.secure:
            client.tls_set_context(self._tls())
        client.will_set(will_topic, will_payload, qos=1, retain=True)
        client.on_socket_open = _send_at_once
        client.on_connect = self._on_connect
        client.on_message = self._on_message
        client.on_disconnect = self._on_disconnect
        # With this paho leaves every write to the loop; the loop is woken in our own way.
        client.on_socket_register_write = _do_nothing
        return client

    def _on_connect(
        self, client: Client, _data: Any, _flags: ConnectFlags, code: ReasonCode, _properties: Any
    ) -> None:
        if code.is_failure:
            _LOG.warning("the broker refuses this device: %s", code)
            self._accepted = False
            if code.value in _REFUSALS:
                self._trouble = Trouble.REFUSED
            client.disconnect()
        elif self._stopping.is_set():
            # stop() came before this and found no connection that it could end.
            client.disconnect()
        else:
            self._accepted = True
            self._notice(None)
            _LOG.info("connected to the broker")
            self._emit(Connected())

    def _on_message(self, _client: Client, _data: Any, message: MQTTMessage) -> None:
        self._emit(Received(message.topic, bytes(message.payload)))

    def _on_disconnect(
        self, _client: Client, _data: Any, _flags: DisconnectFlags, code: ReasonCode, _p: Any
    ) -> None:
        if not self._stopping.is_set():
            _LOG.info("disconnected from the broker: %s", code)


def _send_at_once(_client: Client, _userdata: Any, connection: Any) -> None:
    # Else progress waits up to 40 ms for the broker's TCP to acknowledge the packet before it.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _do_nothing(_client: Client, _data: Any, _socket: Any) -> None:
    pass
