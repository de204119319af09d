"""Guards from a connection that outlives the broker: its handshake was under way at the end."""

from __future__ import annotations

import asyncio
import ssl
import time

from fleet_server.broker.listener import EmbeddedBroker
from tests.fleet_server.broker.authority import Authority

DEADLINE_S = 60.0


def test_handshake_that_ends_after_the_broker(authority: Authority) -> None:
    asyncio.run(asyncio.wait_for(_meet_its_end(authority), DEADLINE_S))


async def _meet_its_end(authority: Authority) -> None:
    broker = EmbeddedBroker(
        "localhost", clock=lambda: time.monotonic_ns() // 1_000_000, tls=authority.server()
    )
    await broker.start()
    reader, writer = await asyncio.open_connection("localhost", broker.port)
    came, goes = ssl.MemoryBIO(), ssl.MemoryBIO()
    line = authority.client("device-1").wrap_bio(came, goes, server_hostname="localhost")
    while True:
        try:
            line.do_handshake()
            break
        except ssl.SSLWantReadError:
            writer.write(goes.read())
            came.write(await reader.read(1 << 16))
    # The last word of the handshake is still to be sent.
    await broker.stop()
    writer.write(goes.read())
    try:
        while await reader.read(1 << 16):
            pass  # tickets of the session, perhaps
    except ConnectionError:
        pass
    writer.close()
