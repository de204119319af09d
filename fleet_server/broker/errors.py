"""The errors of the broker package, one small tree.

Decides what can go wrong and which MQTT 5 reason code says so. Leaves out how a peer is told:
the core answers a ``PacketError`` with CONNACK or DISCONNECT, the client raises the others.
"""

from __future__ import annotations

from fleet_server.broker.reason_codes import ReasonCode


class BrokerError(Exception):
    """Root of everything that this package raises on purpose."""


class PacketError(BrokerError):
    """Bytes or a packet that break MQTT; ``reason`` is the code of section 4.13.

    Any input to the decoder yields packets or this error, never another exception.
    """

    def __init__(self, reason: ReasonCode, message: str) -> None:
        super().__init__(f"{message} ({reason.name.lower()}, 0x{reason:02x})")
        self.reason = reason


class InsecureListenerError(BrokerError):
    """A listener was to leave loopback without both TLS and authentication."""


class MosquittoMissingError(BrokerError):
    """No ``mosquitto`` executable was found."""


class MosquittoFailedError(BrokerError):
    """``mosquitto`` did not start, or did not accept connections in time."""


class BrokerChoiceError(BrokerError):
    """A broker specification that is none of ``auto``, ``embedded``, ``mosquitto`` or a URL."""


class ClientError(BrokerError):
    """Root of what the lean client raises."""


class ConnectionRefusedByBrokerError(ClientError):
    """The broker answered CONNECT with a reason code of 0x80 or more."""

    def __init__(self, reason: ReasonCode) -> None:
        super().__init__(f"the broker refused the connection: {reason.name.lower()}")
        self.reason = reason


class ConnectionLostError(ClientError):
    """The connection ended before the answer arrived; ``reason`` where the broker gave one."""

    def __init__(self, message: str, reason: ReasonCode | None = None) -> None:
        super().__init__(message if reason is None else f"{message}: {reason.name.lower()}")
        self.reason = reason


class RequestRefusedError(ClientError):
    """A SUBSCRIBE, UNSUBSCRIBE or PUBLISH was answered with a reason code of 0x80 or more."""

    def __init__(self, reason: ReasonCode) -> None:
        super().__init__(f"the broker refused the request: {reason.name.lower()}")
        self.reason = reason
