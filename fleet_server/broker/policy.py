"""Who may connect, publish and subscribe: the question, not the answer.

Decides the interface between the broker and whoever knows identities. A policy is pure: the
same arguments give the same answer, whatever the time. Leaves out where its rules come from.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from fleet_server.broker.packets import Connect
from fleet_server.broker.reason_codes import ReasonCode


@dataclass(frozen=True, slots=True)
class PeerCertificate:
    """A client's certificate that TLS has verified: its common name, the SHA-256 of its DER form
    in hexadecimal, and that form.
    """

    name: str
    fingerprint: str
    der: bytes = field(repr=False)


class Policy(Protocol):
    """What the broker asks; every topic and filter it passes is already valid."""

    @property
    def authenticates(self) -> bool:
        """Whether an unknown peer is refused; a listener beyond loopback demands it."""

    def authenticate(
        self, connect: Connect, certificate: PeerCertificate | None
    ) -> str | ReasonCode:
        """The identity behind a CONNECT, or the reason code that refuses it."""

    def may_publish(self, identity: str, topic: str) -> bool:
        """Whether ``identity`` may publish to ``topic``, also by its will."""

    def may_subscribe(self, identity: str, topic_filter: str) -> bool:
        """Whether ``identity`` may receive all that ``topic_filter`` matches.

        For a shared subscription it is the filter behind ``$share/<name>/``.
        """


class AllowAll:
    """Everybody on this machine may do everything: the default behind a loopback address."""

    authenticates = False

    def authenticate(
        self, connect: Connect, certificate: PeerCertificate | None
    ) -> str | ReasonCode:
        return connect.username or "" if certificate is None else certificate.name

    def may_publish(self, identity: str, topic: str) -> bool:
        return True

    def may_subscribe(self, identity: str, topic_filter: str) -> bool:
        return True
