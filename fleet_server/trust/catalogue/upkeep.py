"""The part of the server that signs the repository anew before it expires, without being asked.

Decides how often it looks. What is due is decided in the repository. A failure is logged and tried
again at the next look: half of every lifetime is left for that.
"""

import threading

import structlog

from fleet_server.errors import DomainError
from fleet_server.trust.catalogue.repository import Catalogue

LOOK_EVERY_S = 300.0

log = structlog.get_logger(__name__)


class Upkeep:
    """One thread; ``start`` once, ``stop`` once."""

    def __init__(self, catalogue: Catalogue, *, every_s: float = LOOK_EVERY_S) -> None:
        self._catalogue = catalogue
        self._every_s = every_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="upkeep", daemon=True)

    def start(self) -> None:
        """Look once, at once: a server that was off for long must not serve what has expired."""
        self._look()
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """End after the present look."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _work(self) -> None:
        while not self._stopping.wait(self._every_s):
            self._look()

    def _look(self) -> None:
        try:
            offline = self._catalogue.renew()
        except (DomainError, OSError) as error:
            log.error("metadata not signed anew", error=str(error))
        except Exception:
            # The thread must outlive whatever one look meets.
            log.exception("metadata not signed anew")
        else:
            if offline:
                log.warning("metadata waits for keys that are elsewhere", roles=offline[:20])
