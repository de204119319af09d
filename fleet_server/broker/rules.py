"""Who may say and hear what on a fleet's broker: one table, for whichever broker there is.

The embedded broker asks the table (:class:`CertifiedPolicy`); for Mosquitto it is written as an
access list (:func:`access_list`). An identity is the common name of a certificate that TLS has
verified: a device's name, or one of the server's two names, which no device can have. Which
certificates are believed is for others to say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from fleet_contract import topics
from fleet_contract.topics import DeviceChannel
from fleet_server.broker.packets import Connect
from fleet_server.broker.policy import PeerCertificate
from fleet_server.broker.reason_codes import ReasonCode

PUBLISHER = "server.publisher"
INGEST = "server.ingest"
SERVER_IDENTITIES = (PUBLISHER, INGEST)
DEVICE = "each device"
"""Stands in a rule for every identity that is not the server's."""

SELF = "%u"
"""Stands in a rule's filter for the identity of who asks, as in Mosquitto's patterns."""
_A_DEVICE = "a-device"


class Access(StrEnum):
    """Which way messages may go; the words are Mosquitto's."""

    READ = "read"
    WRITE = "write"


@dataclass(frozen=True, slots=True)
class Rule:
    """One permission; everything that no rule allows is refused.

    ``topic_filter`` may hold :data:`SELF` where the identity of who asks has to stand.
    """

    who: str
    access: Access
    topic_filter: str


def rules_of(fleet: str) -> tuple[Rule, ...]:
    """Return all rules of a fleet's broker.

    A device hears the stop, the root, the directives of any cohort (which one it obeys is signed),
    and what is for itself; it speaks for itself alone. So whoever takes a device over can lie about
    that device only. The publisher may clear what a device that has left retained.
    """
    own = {
        channel: topics.device(fleet, _A_DEVICE, channel).replace(_A_DEVICE, SELF)
        for channel in DeviceChannel
    }
    every = {channel: topics.device_filter(fleet, channel) for channel in DeviceChannel}
    spoken = (DeviceChannel.PRESENCE, DeviceChannel.PROGRESS, DeviceChannel.REPORT)
    return (
        *(
            Rule(DEVICE, Access.READ, topic_filter)
            for topic_filter in (
                *(item for item in topics.control_filters(fleet) if "/device/" not in item),
                own[DeviceChannel.ASSIGNMENT],
                own[DeviceChannel.ACK],
            )
        ),
        Rule(DEVICE, Access.WRITE, own[DeviceChannel.PRESENCE]),
        Rule(DEVICE, Access.WRITE, own[DeviceChannel.PROGRESS]),
        Rule(DEVICE, Access.WRITE, f"{own[DeviceChannel.REPORT]}/+"),
        *(
            Rule(PUBLISHER, access, topic_filter)
            for topic_filter in topics.control_filters(fleet)
            for access in Access
        ),
        Rule(PUBLISHER, Access.WRITE, every[DeviceChannel.PRESENCE]),
        *(Rule(INGEST, Access.READ, every[channel]) for channel in spoken),
        Rule(INGEST, Access.WRITE, every[DeviceChannel.ACK]),
    )


def access_list(fleet: str) -> str:
    """Return the rules as Mosquitto's ``acl_file``.

    Its patterns hold for every identity, the server's too, whose own lines come on top. Mosquitto
    grants any subscription and asks the list for each message that it would deliver.
    """
    lines = ["# Written by the fleet server; changes are lost."]
    who = DEVICE
    for rule in sorted(rules_of(fleet), key=lambda rule: rule.who != DEVICE):
        if rule.who != who:
            who = rule.who
            lines += ["", f"user {who}"]
        word = "pattern" if rule.who == DEVICE else "topic"
        lines.append(f"{word} {rule.access.value} {rule.topic_filter}")
    return "\n".join(lines) + "\n"


class CertifiedPolicy:
    """Lets in whose certificate is believed, under the certificate's name, by the rules."""

    authenticates = True

    def __init__(self, fleet: str, is_believed: Callable[[PeerCertificate], bool]) -> None:
        """``is_believed`` is asked once for every connection; it must not block for long."""
        self._is_believed = is_believed
        self._allowed: dict[tuple[str, Access], list[list[str]]] = {}
        for rule in rules_of(fleet):
            levels = self._allowed.setdefault((rule.who, rule.access), [])
            levels.append(rule.topic_filter.split("/"))

    def authenticate(
        self, connect: Connect, certificate: PeerCertificate | None
    ) -> str | ReasonCode:
        if certificate is None or not self._is_believed(certificate):
            return ReasonCode.NOT_AUTHORIZED
        # A client identifier takes the session of another client with the same one.
        if connect.client_id != certificate.name:
            return ReasonCode.CLIENT_IDENTIFIER_NOT_VALID
        return certificate.name

    def may_publish(self, identity: str, topic: str) -> bool:
        return self._allows(identity, Access.WRITE, topic)

    def may_subscribe(self, identity: str, topic_filter: str) -> bool:
        return self._allows(identity, Access.READ, topic_filter)

    def _allows(self, identity: str, access: Access, asked: str) -> bool:
        who = identity if identity in SERVER_IDENTITIES else DEVICE
        levels = asked.split("/")
        return any(_covers(rule, levels, identity) for rule in self._allowed[who, access])


def _covers(allowed: list[str], asked: list[str], identity: str) -> bool:
    """Say whether a rule's filter matches all that a filter, or a topic, can match."""
    if len(allowed) != len(asked):
        return False
    for level, wanted in zip(allowed, asked, strict=True):
        if wanted == "#" or level not in (wanted, "+", SELF):
            return False
        if level == SELF and wanted != identity:
            return False
    return True
