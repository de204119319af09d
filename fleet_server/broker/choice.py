"""Which broker a server uses: ``auto``, ``embedded``, ``mosquitto`` or a URL.

Decides the one interface that the server sees of any of them. Leaves out how each works.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from fleet_server.broker.errors import BrokerChoiceError
from fleet_server.broker.limits import Limits
from fleet_server.broker.listener import EmbeddedBroker
from fleet_server.broker.mosquitto import PrivateMosquitto, find_mosquitto
from fleet_server.broker.mosquitto_configuration import MosquittoSecurity
from fleet_server.broker.policy import Policy

_DEFAULT_PORTS = {"mqtt": 1883, "mqtts": 8883}


class Broker(Protocol):
    """A broker that can be used between ``start`` and ``stop``; ``url`` is final after ``start``.

    ``url`` is ``mqtt://host:port`` or ``mqtts://host:port``.
    """

    @property
    def url(self) -> str: ...

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


@dataclass(frozen=True, slots=True)
class ExternalBroker:
    """A broker that somebody else runs: nothing to start and nothing to stop."""

    url: str

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass


def choose(
    spec: str,
    *,
    folder: Path,
    clock: Callable[[], int],
    host: str = "127.0.0.1",
    port: int = 0,
    limits: Limits | None = None,
    policy: Policy | None = None,
    tls: ssl.SSLContext | None = None,
    mosquitto: MosquittoSecurity | None = None,
) -> Broker:
    """The broker for ``spec``; nothing runs yet.

    ``auto`` takes a private Mosquitto where one is installed, else the embedded broker. ``folder``
    holds Mosquitto's files. ``policy`` and ``tls`` protect the embedded broker, ``mosquitto``
    Mosquitto: give all of them or none. Raises ``BrokerChoiceError``, or ``InsecureListenerError``
    for an open broker beyond loopback.
    """
    if spec == "auto":
        spec = "embedded" if find_mosquitto() is None else "mosquitto"
    limits = limits or Limits()
    if spec == "embedded":
        return EmbeddedBroker(host, port, clock=clock, limits=limits, policy=policy, tls=tls)
    if spec == "mosquitto":
        if mosquitto is None and (policy is not None or tls is not None):
            raise BrokerChoiceError(
                "a Mosquitto without certificates is open and asks no policy; "
                "use the embedded broker or a URL"
            )
        return PrivateMosquitto(
            folder,
            port,
            host=host,
            max_packet_size_bytes=limits.max_packet_size_bytes,
            security=mosquitto,
        )
    return ExternalBroker(_checked_url(spec))


def _checked_url(spec: str) -> str:
    try:
        parts = urlsplit(spec)
        port = parts.port
    except ValueError as error:
        raise BrokerChoiceError(f"not a broker: {spec!r}") from error
    if (
        parts.scheme not in _DEFAULT_PORTS
        or not parts.hostname
        or parts.username is not None
        or parts.path not in ("", "/")
        or parts.query
        or parts.fragment
    ):
        raise BrokerChoiceError(
            f"{spec!r} is none of auto, embedded, mosquitto, mqtt://host:port, mqtts://host:port"
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}:{port or _DEFAULT_PORTS[parts.scheme]}"
