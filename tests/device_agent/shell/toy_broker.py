"""The broker of a toy fleet, on a thread of its own."""

import asyncio
import ssl
import threading
import time

from fleet_server.broker.listener import EmbeddedBroker

WAIT_S = 60.0
"""Only against a hang: a machine may stand still for seconds."""


class ToyBroker:
    """Runs from the beginning on; ``close`` when done."""

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        self._ready, self._ending = threading.Event(), asyncio.Event()
        self._broker = EmbeddedBroker(clock=lambda: time.monotonic_ns() // 1_000_000, tls=tls)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._ready.wait(WAIT_S)
        self.port, self.url = self._broker.port, self._broker.url

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self._broker.start()
        self._ready.set()
        await self._ending.wait()
        # Who came before is let in: asyncio (3.11) loses what it has accepted, and not yet made a
        # connection of, when the listener closes.
        for _ in range(3):
            await asyncio.sleep(0)
        await self._broker.stop()
        # Handshakes whose client is gone end by themselves; the others are broken off.
        if others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others, timeout=1)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()
