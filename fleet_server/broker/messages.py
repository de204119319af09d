"""An application message inside the broker, and the bytes that many receivers share.

Decides what of a PUBLISH travels on, when it has expired, and how often it is encoded: once
per variant, whatever the number of receivers. Leaves out who receives it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from msgspec.structs import replace

from fleet_server.broker.codec import encode_publish_parts
from fleet_server.broker.packets import Publish
from fleet_server.broker.properties import Properties


class Variant(NamedTuple):
    """All that makes one receiver's bytes differ from another's, but for the packet identifier."""

    version: int
    qos: int
    retain: bool
    identifiers: tuple[int, ...]


class Frame:
    """One encoded PUBLISH with a gap for the packet identifier.

    ``publish`` is the same as data, for a shell that needs no bytes (the simulator).
    """

    __slots__ = ("_after", "_before", "publish", "size_bytes")

    def __init__(self, publish: Publish, version: int) -> None:
        self.publish = publish
        self._before, self._after = encode_publish_parts(publish, version)
        self.size_bytes = len(self._before) + len(self._after) + (2 if publish.qos else 0)

    def encode(self, packet_id: int) -> bytes:
        """The packet's bytes; ``packet_id`` is 0 with QoS 0."""
        if packet_id == 0:
            return self._before + self._after
        return b"%b%b%b" % (self._before, packet_id.to_bytes(2, "big"), self._after)


@dataclass(slots=True, eq=False)
class Message:
    """``expires_at_ms`` is None for a message that never expires (3.3.2.3.3)."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    properties: Properties
    expires_at_ms: int | None
    _frames: dict[tuple[Variant, int | None], Frame] = field(default_factory=dict)

    def expired(self, now_ms: int) -> bool:
        return self.expires_at_ms is not None and now_ms >= self.expires_at_ms

    def frame(self, variant: Variant, now_ms: int) -> Frame | None:
        """The encoded form for this variant; None once the message has expired."""
        remaining_s = None
        if self.expires_at_ms is not None:
            # 3.3.2.3.3: the interval sent on is the received one minus the time spent here.
            remaining_s = -((now_ms - self.expires_at_ms) // 1000)
            if remaining_s <= 0:
                return None
        frame = self._frames.get((variant, remaining_s))
        if frame is None:
            frame = self._frames[variant, remaining_s] = self._encode(variant, remaining_s)
        return frame

    def _encode(self, variant: Variant, remaining_s: int | None) -> Frame:
        properties = self.properties
        if variant.identifiers or remaining_s != properties.message_expiry_interval:
            properties = replace(
                properties,
                subscription_identifiers=variant.identifiers,
                message_expiry_interval=remaining_s,
            )
        publish = Publish(
            self.topic, self.payload, variant.qos, variant.retain, properties=properties
        )
        return Frame(publish, variant.version)


def received_message(
    topic: str, payload: bytes, qos: int, retain: bool, properties: Properties, now_ms: int
) -> Message:
    """The message of a PUBLISH or a will that takes effect at ``now_ms``."""
    interval_s = properties.message_expiry_interval
    expires_at_ms = None if interval_s is None else now_ms + interval_s * 1000
    if properties.will_delay_interval is not None:
        properties = replace(properties, will_delay_interval=None)
    return Message(topic, payload, qos, retain, properties, expires_at_ms)
