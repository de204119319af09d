"""What keeps a device believed, and believing the right ones: its certificate and its anchors.

Decides when the certificate is renewed (in the last third of its life, each device at a time of its
own, and when broker or server refuse it) and when the anchors are fetched anew (when they vouch for
nobody there), and how soon that is tried again after a failure. Models answer whatever becomes of
it. What is sent is the contract's; which certificate is taken is decided in
:mod:`device_agent.shell.certificate`.
"""

import hashlib
import logging
import threading
from collections.abc import Callable
from typing import Protocol

from msgspec.structs import replace

from device_agent.errors import IdentityUnusable, StepFailed
from device_agent.shell import certificate
from device_agent.shell.catalogue import Catalogue
from device_agent.shell.certificate import Certificate, CertificateRejected
from device_agent.shell.clock import Clock, share_of
from device_agent.shell.http_source import Canceled, HttpFailure, HttpSource
from device_agent.shell.identity import (
    ANSWER_BYTES,
    DeviceIdentity,
    check_addresses,
    problem_of,
    save_identity,
)
from device_agent.shell.store import Store
from device_agent.shell.tls import Tls, Trouble
from fleet_contract import codec
from fleet_contract.enrolment import RenewalAnswer, RenewalRequest
from fleet_contract.errors import Refused

SPREAD_MS = 1_000
"""Devices that meet the same trouble together see to it over so long a time."""
FIRST_DELAY_MS = 5_000
LONGEST_DELAY_MS = 3_600_000

_LOG = logging.getLogger(__name__)


def renewal_ms(held: Certificate) -> int:
    """Return when a certificate shall be renewed, in milliseconds since 1970.

    That is after two thirds of its life and before five sixths, at a time that its fingerprint
    decides: so a fleet that was enrolled together does not ask together.
    """
    third_ms = (held.not_after_ms - held.not_before_ms) // 3
    share = int.from_bytes(hashlib.sha256(held.fingerprint.encode()).digest()[:8], "big")
    return held.not_before_ms + 2 * third_ms + ((third_ms // 2) * share >> 64)


class Reached(Protocol):
    """What connects to the broker, and is told when that has a better chance or another place."""

    def hurry(self) -> None: ...

    def move_to(self, url: str) -> None: ...


class Upkeep:
    """Sees to certificate and anchors of one running device. Thread-safe."""

    def __init__(
        self,
        *,
        store: Store,
        identity: DeviceIdentity,
        tls: Tls,
        catalogue: Catalogue,
        connection: Reached,
        artifacts: HttpSource,
        clock: Clock,
        submit: Callable[[Callable[[], None]], None],
        time_floor_ms: Callable[[], int],
        stopping: Callable[[], bool],
    ) -> None:
        """Take what is kept up, and what does the work.

        Args:
            store: in it lie identity, pair and anchors.
            identity: as it is stored now.
            tls, catalogue: as the daemon uses them.
            connection, artifacts: moved when the server says that they are elsewhere.
            clock: for times and delays.
            submit: does work on another thread.
            time_floor_ms: the device's time is never believed to be earlier.
            stopping: asked now and then.
        """
        self._store = store
        self._identity = identity
        self._tls = tls
        self._catalogue = catalogue
        self._connection = connection
        self._artifacts = artifacts
        self._clock = clock
        self._submit = submit
        self._time_floor_ms = time_floor_ms
        self._stopping = stopping
        # An http server is for trying out: nothing there authenticates a renewal.
        self._secure = identity.server.startswith("https:")
        self._server = HttpSource(identity.server, ticks_ns=clock.ticks_ns, tls=tls.context)
        self._lock = threading.Lock()
        self._troubles = set[Trouble]()
        self._busy = False
        self._failures = 0
        # Devices that were without power together do not ask together.
        self._not_before_ms = self._now_ms() + share_of(clock, SPREAD_MS)
        self._renewal_ms = self._next_renewal_ms() if self._secure else None
        self._said = ""

    def notice(self, trouble: Trouble | None) -> None:
        """Take in what a connection met; None says that the broker takes this device."""
        if not self._secure:
            return
        with self._lock:
            if trouble is None:
                self._troubles.clear()
                self._failures = 0
                # It was missing, and somebody has put it back.
                self._renewal_ms = self._renewal_ms or self._next_renewal_ms()
            elif trouble not in self._troubles:
                self._troubles.add(trouble)
                spread_ms = share_of(self._clock, SPREAD_MS)
                self._not_before_ms = max(self._not_before_ms, self._now_ms() + spread_ms)

    def wake_ms(self) -> int | None:
        """Return when :meth:`on_time` has something to do; None as long as nothing is due."""
        with self._lock:
            if not self._secure or self._busy:
                return None
            if self._troubles:
                return self._not_before_ms
            if self._renewal_ms is None:
                return None
            return max(self._renewal_ms, self._not_before_ms)

    def on_time(self) -> None:
        """Begin what is due; does not wait for it."""
        due_ms = self.wake_ms()
        now_ms = self._now_ms()
        if due_ms is None or now_ms < due_ms:
            return
        with self._lock:
            self._busy = True
        self._submit(self._work)

    def _now_ms(self) -> int:
        return max(self._clock.now_ms(), self._time_floor_ms())

    def _next_renewal_ms(self) -> int | None:
        try:
            return renewal_ms(self._tls.certificate())
        except IdentityUnusable as error:
            _LOG.error("this device stays offline, its models answer: %s", error)
            return None

    # --- on a worker -----------------------------------------------------------------------------

    def _work(self) -> None:
        with self._lock:
            troubles = set(self._troubles)
            renewal_ms = self._renewal_ms
        failure = ""
        try:
            if Trouble.UNVOUCHED in troubles:
                self._fetch_anchors()
            if Trouble.REFUSED in troubles or (
                renewal_ms is not None and self._now_ms() >= renewal_ms
            ):
                self._renew()
        except HttpFailure as error:
            failure = f"{error}"
            if error.trouble is Trouble.UNVOUCHED:
                troubles.add(Trouble.UNVOUCHED)
        except (StepFailed, IdentityUnusable, CertificateRejected, Refused, ValueError) as error:
            failure = f"{error}"
        except OSError as error:
            failure = f"{self._store.folder} cannot be written: {error.strerror}"
        except Canceled:
            return
        finally:
            self._done(troubles, failure)

    def _done(self, troubles: set[Trouble], failure: str) -> None:
        with self._lock:
            self._busy = False
            # Also after a success: whether it helped, the next connection shows.
            delay_ms = min(LONGEST_DELAY_MS, FIRST_DELAY_MS << min(self._failures, 10))
            self._failures = self._failures + 1 if failure or troubles else 0
            self._not_before_ms = (
                self._now_ms() + delay_ms // 2 + share_of(self._clock, delay_ms // 2)
            )
            self._troubles = self._troubles | troubles if failure else self._troubles - troubles
        if failure and failure != self._said:
            _LOG.warning("certificate and anchors stay as they are for now: %s", failure)
        self._said = failure

    def _fetch_anchors(self) -> None:
        """A refresh of the metadata stores them if the fleet has others now."""
        with self._catalogue.refreshed(
            time_floor_ms=self._time_floor_ms(), canceled=self._stopping
        ):
            self._connection.hurry()

    def _renew(self) -> None:
        held = self._tls.certificate()
        key = certificate.next_key(self._store.folder, held=held.public_key)
        answer = self._ask(RenewalRequest(certificate.request_for(key, held.device)))
        pair = certificate.join(key, answer.certificate, held.device)
        check_addresses(answer.broker, answer.artifacts)
        self._tls.save_pair(pair)
        with self._lock:
            self._renewal_ms = self._next_renewal_ms()
        _LOG.info("the certificate of this device was renewed")
        moved = replace(self._identity, broker=answer.broker, artifacts=answer.artifacts)
        if moved != self._identity:
            save_identity(self._store, moved)
            self._identity = moved
            self._connection.move_to(moved.broker)
            self._artifacts.move_to(moved.artifacts)
        self._connection.hurry()

    def _ask(self, request: RenewalRequest) -> RenewalAnswer:
        with self._server.ask(
            "POST",
            "v1/devices/renew",
            size_bytes=ANSWER_BYTES,
            headers={"Content-Type": "application/json"},
            body=codec.encode_json(request),
            canceled=self._stopping,
        ) as answer:
            body = answer.read(ANSWER_BYTES)
            if answer.status not in (200, 201):
                raise HttpFailure(problem_of(answer.status, body))
            return codec.decode_json(body, RenewalAnswer, limit_bytes=ANSWER_BYTES)
