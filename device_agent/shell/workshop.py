"""What the agents of one process share: workers for what takes long, the prober, the runtime.

Decides how much happens at once on a device: a few threads, one probe. An application has one agent
and one workshop; a live fleet has many agents in a process and one workshop among them.
"""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

from device_agent.inference.capabilities import capabilities
from device_agent.inference.probe import Prober
from device_agent.inference.runtimes import Runtimes
from fleet_contract.manifest import Capabilities

_LOG = logging.getLogger(__name__)


class Workshop:
    """Worker threads, a prober and a runtime. Close it after the agents that use it."""

    def __init__(self, *, workers: int = 2) -> None:
        self.runtime = Runtimes()
        self.prober = Prober()
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="workshop")

    @cached_property
    def capabilities(self) -> Capabilities:
        """What this device offers; found out by running something, once."""
        return capabilities()

    def submit(self, work: Callable[[], None]) -> None:
        """Do this on a worker; after :meth:`close` nothing is taken on."""

        def guarded() -> None:
            try:
                work()
            except Exception:
                # The agent that asked reports its own failures; this one it did not expect.
                _LOG.exception("a worker failed")

        try:
            self._pool.submit(guarded)
        except RuntimeError:
            _LOG.info("no work is taken on while stopping")

    def close(self) -> None:
        """Wait for what is being done, drop what waits, end the prober's helper."""
        self._pool.shutdown(cancel_futures=True)
        self.prober.close()
