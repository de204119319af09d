"""Numbers that name protocol versions and control packets.

Decides nothing; the other modules share these names.
"""

from __future__ import annotations

from enum import IntEnum

MQTT_3_1_1 = 4
MQTT_5 = 5


class PacketType(IntEnum):
    """Section 2.1.2; ``WILL`` is no packet but has properties of its own (section 3.1.3.2)."""

    WILL = 0
    CONNECT = 1
    CONNACK = 2
    PUBLISH = 3
    PUBACK = 4
    PUBREC = 5
    PUBREL = 6
    PUBCOMP = 7
    SUBSCRIBE = 8
    SUBACK = 9
    UNSUBSCRIBE = 10
    UNSUBACK = 11
    PINGREQ = 12
    PINGRESP = 13
    DISCONNECT = 14
    AUTH = 15
