"""The bounds of the embedded broker, in one place.

Decides how much one peer and all peers together may ask for. Leaves out their enforcement,
which stands where the bounded thing is handled and cites the section again.
"""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """All sizes in bytes, all times in the unit of their name."""

    max_connections: int = 20_000
    # 3.1.4: a client that sends no CONNECT in a reasonable time is cut off.
    connect_timeout_ms: int = 10_000
    # 3.1.2.10 and 3.2.2.3.14: the longest silence a client may ask for. 3.1.1 cannot be told.
    server_keep_alive_s: int = 60
    # 3.1.3.1: 23 bytes must be accepted, more may be.
    max_client_id_bytes: int = 256
    # 3.2.2.3.6, announced as Maximum Packet Size.
    max_packet_size_bytes: int = MIB
    # 3.2.2.3.3: QoS 2 publishes of one client that wait for their PUBREL.
    receive_maximum: int = 1_000
    # 4.9: publishes in flight to one client, whatever larger Receive Maximum it offers.
    max_in_flight: int = 1_000
    # Publishes that wait for a slow client. Past either bound the client is disconnected with
    # Quota exceeded: a visible loss is repaired by its reconnect, a silent one is not.
    max_queued_messages: int = 100_000
    max_queued_bytes: int = 64 * MIB
    # Bytes that wait in one connection's socket buffer before it is cut off.
    max_write_buffer_bytes: int = 64 * MIB
    max_subscriptions_per_client: int = 256
    max_topic_bytes: int = KIB
    max_topic_levels: int = 32
    max_retained_messages: int = 1_000_000
    max_retained_bytes: int = 512 * MIB
