"""Throwing a client out of a broker that has no command for that.

Mosquitto reads a new revocation list for new handshakes only, and a connection that is there stays.
But every client's identifier is the name in its certificate, and a broker closes the older of two
connections with one identifier: so who may issue certificates can take a client's place for a
moment. The client cannot come back if its certificate was revoked before.
"""

from __future__ import annotations

import ssl

from fleet_server.broker.client import MqttClient

CONNECT_S = 10.0


async def throw_out(
    host: str, port: int, identity: str, tls: ssl.SSLContext, *, clears: str = ""
) -> None:
    """End the connection of a client, if it has one.

    Args:
        host: of the broker.
        port: of the broker.
        identity: the client's name.
        tls: verifies the broker, and shows a certificate of that name.
        clears: a topic of the client's own; what is retained there goes, its will included.

    Raises:
        OSError, TimeoutError, ClientError: if the broker cannot be reached, or refuses.
    """
    client = MqttClient(identity)
    await client.connect(host, port, tls=tls, timeout_s=CONNECT_S)
    if clears:
        await client.publish(clears, b"", retain=True)
    await client.disconnect()
