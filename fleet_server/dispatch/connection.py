"""The server's connections to the broker: MQTT 5, clean start, reconnecting with jitter.

Decides how to connect, subscribe and come back; what is published and what a message means is up
to the listener. Every connection has a client of its own, so that nothing which was queued or
received on a lost one is sent or acknowledged on the next.
"""

import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

import structlog
from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from fleet_contract import limits
from fleet_server.clock import Clock
from fleet_server.errors import Invalid

KEEP_ALIVE_S = 15
CONNECT_S = 10.0
"""For TCP, CONNACK and SUBACK together."""
FIRST_WAIT_MS = 200
LONGEST_WAIT_MS = 5_000
MOST_IN_FLIGHT = 256
"""Publications that fly at a time; fewer if the broker's Receive Maximum says so."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """Where a broker listens and how to log in; an empty user name logs in as nobody."""

    host: str
    port: int
    username: str = ""
    password: str = ""
    tls: bool = False

    @classmethod
    def parse(cls, url: str) -> "BrokerAddress":
        """Read ``mqtt[s]://[user:password@]host[:port]``.

        Raises:
            Invalid: if it is not such a URL.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme not in {"mqtt", "mqtts"} or not parts.hostname or parts.path.strip("/"):
            raise Invalid(
                "broker_url",
                "the broker's address is not an MQTT URL",
                "write mqtt://host:1883 or mqtts://host:8883",
            )
        tls = parts.scheme == "mqtts"
        return cls(
            parts.hostname,
            port or (8883 if tls else 1883),
            unquote(parts.username or ""),
            unquote(parts.password or ""),
            tls,
        )


@dataclass(frozen=True, slots=True)
class Received:
    """A message as it arrived; ``client`` is the connection that it must be acknowledged on."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    message_id: int
    client: mqtt.Client


@dataclass(frozen=True, slots=True)
class Certified:
    """Who the server is to a broker with TLS: the name in its certificate, and how that is shown.

    ``context`` is asked at every connection, so that a certificate may be renewed in between.
    """

    identity: str
    context: Callable[[], ssl.SSLContext]


class Listener(Protocol):
    """Called on the network thread: must return soon and never raise."""

    def connected(self, window: int) -> None:
        """A new connection is there, and lets so many publications fly at a time."""

    def disconnected(self) -> None:
        """The connection is lost."""

    def acknowledged(self) -> None:
        """The broker acknowledged a publication of QoS 1."""

    def received(self, message: Received) -> None:
        """A message arrived."""


class _Client(mqtt.Client):
    """paho's client, and an event that is set when its network thread ends for any reason."""

    ended: threading.Event

    def loop_forever(
        self, timeout: float = 1.0, retry_first_connection: bool = False
    ) -> MQTTErrorCode:
        try:
            return super().loop_forever(timeout, retry_first_connection)
        except Exception:
            log.exception("connection to the broker broke down")
            return MQTTErrorCode.MQTT_ERR_UNKNOWN
        finally:
            self.ended.set()


class Connection:
    """Keeps one connection to the broker alive and subscribed, on a thread of its own."""

    def __init__(
        self,
        address: BrokerAddress,
        listener: Listener,
        clock: Clock,
        *,
        role: str,
        filters: Sequence[str],
        manual_acknowledgement: bool = False,
        receive_maximum: int = 1_000,
        certified: Certified | None = None,
    ) -> None:
        self._address = address
        self._listener = listener
        self._clock = clock
        self._role = role
        self._filters = tuple(filters)
        self._manual = manual_acknowledgement
        self._receive_maximum = receive_maximum
        self._certified = certified
        self._stopping = threading.Event()
        self._subscribed = threading.Event()
        self._client: _Client | None = None
        self._thread = threading.Thread(target=self._run, name=f"broker-{role}", daemon=True)

    @property
    def ready(self) -> bool:
        """Whether it is connected and every subscription was granted."""
        return self._subscribed.is_set()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Disconnect and wait for the threads to end."""
        self._stopping.set()
        client = self._client
        if client is not None:
            client.disconnect()
        self._thread.join()

    def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool) -> bool:
        """Hand a message to the network thread; False if there is no connection."""
        client = self._client
        if client is None:
            return False
        return client.publish(topic, payload, qos, retain).rc == MQTTErrorCode.MQTT_ERR_SUCCESS

    def acknowledge(self, message: Received) -> None:
        """Acknowledge a message of QoS 1 on the connection that it came over, if that is alive."""
        if message.qos:
            message.client.ack(message.message_id, message.qos)

    def _run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            client = self._make_client()
            self._client = client
            failures = 0 if self._serve(client) else failures + 1
            self._client = None
            if self._stopping.is_set():
                return
            longest_ms = min(FIRST_WAIT_MS << min(failures, 10), LONGEST_WAIT_MS)
            share = int.from_bytes(self._clock.random_bytes(2), "big") / 65_536
            self._stopping.wait(longest_ms * (0.5 + share / 2) / 1_000)

    def _serve(self, client: _Client) -> bool:
        """Hold a connection until it ends; True if it was ready once."""
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.ReceiveMaximum = self._receive_maximum
        properties.MaximumPacketSize = limits.MQTT_PACKET_BYTES
        address = self._address
        try:
            client.connect(
                address.host,
                address.port,
                keepalive=KEEP_ALIVE_S,
                clean_start=True,
                properties=properties,
            )
        except (OSError, ValueError) as error:
            log.warning("broker not reached", role=self._role, host=address.host, error=str(error))
            return False
        client.loop_start()
        if self._stopping.is_set():  # stop() may have come between making and connecting
            client.disconnect()
        if not client.ended.wait(CONNECT_S) and not self._subscribed.is_set():
            log.warning("broker does not answer", role=self._role, host=address.host)
            client.disconnect()
        client.ended.wait()
        client.loop_stop()
        was_ready = self._subscribed.is_set()
        self._subscribed.clear()
        self._listener.disconnected()
        log.info("disconnected from the broker", role=self._role)
        return was_ready

    def _make_client(self) -> _Client:
        certified = self._certified if self._address.tls else None
        # Without certificates the name is drawn anew: a broker ends the older of two connections
        # of one name. With them it is the identity, and an older connection is our own.
        drawn = f"server-{self._role}-{self._clock.random_bytes(8).hex()}"
        client = _Client(
            CallbackAPIVersion.VERSION2,
            client_id=certified.identity if certified is not None else drawn,
            protocol=mqtt.MQTTv5,
            reconnect_on_failure=False,
            manual_ack=self._manual,
        )
        client.ended = threading.Event()
        client.connect_timeout = CONNECT_S
        # Paced by the listener, who knows the broker's Receive Maximum; paho does not read it.
        client.max_inflight_messages_set(65_535)
        if self._address.username:
            client.username_pw_set(self._address.username, self._address.password)
        if certified is not None:
            client.tls_set_context(certified.context())
        elif self._address.tls:
            client.tls_set()
        client.on_socket_open = _send_at_once
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        return client

    def _on_connect(
        self, client: mqtt.Client, _: object, __: object, reason: Any, properties: Any
    ) -> None:
        if reason.is_failure:
            log.error("the broker refused the connection", role=self._role, reason=str(reason))
            client.disconnect()
            return
        window = min(MOST_IN_FLIGHT, getattr(properties, "ReceiveMaximum", MOST_IN_FLIGHT))
        options = SubscribeOptions(qos=1, retainAsPublished=True)
        client.subscribe([(name, options) for name in self._filters])
        log.info("connected to the broker", role=self._role, window=window)
        self._listener.connected(window)

    def _on_subscribe(
        self, client: mqtt.Client, _: object, __: int, reasons: Sequence[Any], ___: object
    ) -> None:
        if any(reason.is_failure for reason in reasons):
            log.error("the broker refused a subscription", role=self._role, reasons=str(reasons))
            client.disconnect()
            return
        self._subscribed.set()

    def _on_publish(self, *_: object) -> None:
        self._listener.acknowledged()

    def _on_message(self, client: mqtt.Client, _: object, message: mqtt.MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            topic = ""
        self._listener.received(
            Received(
                topic, bytes(message.payload), message.qos, message.retain, message.mid, client
            )
        )


def _send_at_once(_: object, __: object, connection: Any) -> None:
    # Else a directive waits up to 40 ms for the broker's TCP to acknowledge the packet before it.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
