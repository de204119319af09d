"""The controller: looks at every rollout in turn, decides, and applies, until it is stopped.

Decides when rollouts are looked at, and that only one replica does it. A decision is made outside
of a transaction and applied in one, only if the rollout is still what it was: killed at any point,
the next look starts from what is committed and comes to the same decision.
"""

import threading
from collections.abc import Callable

import structlog
from sqlalchemy.exc import SQLAlchemyError

from fleet_server.clock import Clock
from fleet_server.database import Database
from fleet_server.errors import DomainError
from fleet_server.rollouts import repository
from fleet_server.rollouts.applying import apply, changes, renew
from fleet_server.rollouts.decide import Kind, decide
from fleet_server.rollouts.directives import LIFETIME_MS
from fleet_server.rollouts.loading import ReleaseFactsCache, load
from fleet_server.trust.keyring import Keyring

LEASE_MS = 5_000
"""After a kill, how long the next one waits. Two that decide at once do no harm: a decision is
applied only on the revision that it was made from.
"""
RENEWAL_EVERY_MS = LIFETIME_MS // 100
STOP_WAIT_S = 30.0

log = structlog.get_logger(__name__)


class Controller:
    """Runs in a thread of its own, every ``interval_ms`` or when woken.

    Args:
        wake_publisher: called after a decision is committed.
        holder: who holds the lease; a server that comes back by the same name goes on at once,
            where a stranger waits for the lease to end.

    Attributes:
        cache: what is known of releases; endpoints may share it.
    """

    def __init__(
        self,
        database: Database,
        keyring: Keyring,
        wake_publisher: Callable[[], None],
        clock: Clock,
        *,
        interval_ms: int,
        holder: str = "",
    ) -> None:
        self._database = database
        self._keyring = keyring
        self._wake_publisher = wake_publisher
        self._clock = clock
        self._interval_s = interval_ms / 1_000
        self._holder = holder or clock.random_bytes(8).hex()
        self.cache = ReleaseFactsCache()
        self._woken = threading.Event()
        self._stopping = threading.Event()
        self._renewed_ms = 0
        self._listening_since_ms = clock.now_ms()
        self._counts = {"looks": 0, "decisions": 0, "errors": 0}
        self._thread = threading.Thread(target=self._run, name="controller", daemon=True)

    def start(self) -> None:
        """Begin to look after rollouts."""
        self._thread.start()

    def stop(self) -> None:
        """Finish the decision at hand and end."""
        self._stopping.set()
        self._woken.set()
        if self._thread.is_alive():
            self._thread.join(STOP_WAIT_S)
        self._give_up_lease()

    def wake(self) -> None:
        """Look now instead of at the next interval."""
        self._woken.set()

    def counts(self) -> dict[str, int]:
        """Return what was done since the start."""
        return dict(self._counts)

    def tick(self) -> int:
        """Look at every rollout once; returns how many decisions were written.

        Raises:
            DomainError: if the database is busy.
        """
        now_ms = self._clock.now_ms()
        if not self._leads(now_ms):
            return 0
        with self._database.reading() as session:
            rollouts = [row.id for row in repository.active(session, self._keyring.fleet)]
        written = 0
        for rollout in rollouts:
            try:
                written += self._look_at(rollout)
            except Exception:
                # One rollout's defect must not keep the others from being rolled back.
                self._counts["errors"] += 1
                log.exception("rollout cannot be decided", rollout=rollout)
        if now_ms - self._renewed_ms >= RENEWAL_EVERY_MS:
            with self._database.transaction() as session:
                renewed = renew(session, self._keyring, now_ms=now_ms)
            if renewed:
                self._wake_publisher()
            written += renewed
            self._renewed_ms = now_ms
        self._counts["looks"] += 1
        return written

    def _look_at(self, rollout: str) -> int:
        """Decide on one rollout and apply the decision; returns 1 if it was written."""
        with self._database.reading() as session:
            row = repository.find(session, self._keyring.fleet, rollout)
            if row is None:
                return 0
            loaded = load(
                session,
                row,
                self.cache,
                now_ms=self._clock.now_ms(),
                listening_since_ms=self._listening_since_ms,
            )
        decision = decide(loaded.snapshot)
        if not changes(loaded, decision):
            return 0
        with self._database.transaction() as session:
            applied = apply(
                session,
                self._keyring,
                self.cache,
                loaded,
                decision,
                now_ms=self._clock.now_ms(),
            )
        if not applied:
            return 0
        # At once: devices wait for it while other rollouts are looked at.
        self._wake_publisher()
        if decision.kind is not Kind.WAIT:
            self._counts["decisions"] += 1
            log.info(
                "decided",
                rollout=rollout,
                decision=decision.kind.value,
                reason=decision.reason,
                correlation_id=row.correlation_id,
            )
        return 1

    def _leads(self, now_ms: int) -> bool:
        """Take the lease, or renew it once half of it is over."""
        fleet = self._keyring.fleet
        with self._database.reading() as session:
            holder, expires_ms = repository.lease(session, fleet)
        if holder == self._holder and expires_ms - now_ms > LEASE_MS // 2:
            return True
        if holder not in ("", self._holder) and expires_ms > now_ms:
            return False
        with self._database.transaction() as session:
            return repository.take_lease(
                session, fleet, self._holder, now_ms=now_ms, expires_ms=now_ms + LEASE_MS
            )

    def _give_up_lease(self) -> None:
        """Let the next controller begin at once."""
        try:
            with self._database.transaction() as session:
                repository.drop_lease(session, self._keyring.fleet, self._holder)
        except (DomainError, SQLAlchemyError) as error:
            log.warning("lease not given up", error=type(error).__name__)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._woken.clear()
            try:
                self.tick()
            except (DomainError, SQLAlchemyError) as error:
                self._counts["errors"] += 1
                log.error("controller cannot decide", error=str(error)[:300])
            self._woken.wait(self._interval_s)
