"""Telemetry on its way out: windows are closed in time, kept in the outbox, sent until committed.

Decides when a window ends (at the directive's interval; away from the broker at most once a
minute) and when the outbox goes to flash: at a clean stop, and once a minute while the server owes
an acknowledgement, so that a connected device writes nothing. What is given up when the outbox is
full is decided in :mod:`device_agent.core.outbox`.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from device_agent.core.outbox import Outbox
from device_agent.inference.host import ModelHost
from device_agent.shell.clock import Clock, share_of
from device_agent.shell.store import Store
from fleet_contract import topics
from fleet_contract.errors import Refused
from fleet_contract.messages.report import Ack

LEAST_INTERVAL_MS = 200
OFFLINE_INTERVAL_MS = 60_000
SAVE_EVERY_MS = 60_000

_LOG = logging.getLogger(__name__)


@dataclass
class _Schedule:
    every_ms: int
    due_ms: int


class Telemetry:
    """Collects from the hosts of one agent. Used by the agent's own thread only."""

    def __init__(self, store: Store, clock: Clock, *, fleet: str, device: str) -> None:
        self._store = store
        self._clock = clock
        self._fleet = fleet
        self._device = device
        self._session = ""
        self._outbox = Outbox()
        self._schedules: dict[str, _Schedule] = {}
        self._saved = False
        self._save_due_ms = 0

    def begin(self, session: str, now_ms: int) -> None:
        """Begin a boot session, and take in what earlier ones left behind."""
        self._session = session
        self._save_due_ms = now_ms + SAVE_EVERY_MS
        data = self._store.load_outbox()
        if data is None:
            return
        self._saved = True
        try:
            self._outbox.restore(data)
        except Refused as refused:
            _LOG.error("stored telemetry is damaged and lost: %s", refused.detail)

    def every(self, model: str, every_ms: int, now_ms: int) -> None:
        """Close a window of this model at this interval from now on."""
        every_ms = max(every_ms, LEAST_INTERVAL_MS)
        known = self._schedules.get(model)
        if known is None or known.every_ms != every_ms:
            # Devices that got one directive at one time do not report at one time.
            first_ms = now_ms + 1 + share_of(self._clock, every_ms)
            self._schedules[model] = _Schedule(every_ms, first_ms)

    def acknowledge(self, ack: Ack) -> None:
        """Forget what the server has committed."""
        self._outbox.acknowledge(ack)

    @property
    def waiting(self) -> int:
        """Windows that the server has not acknowledged."""
        return len(self._outbox)

    def next_due_ms(self, *, connected: bool) -> int | None:
        """Return when :meth:`work` has something to do."""
        times = [schedule.due_ms for schedule in self._schedules.values()]
        if len(self._outbox):
            times.append(self._save_due_ms)
        due_ms = self._outbox.next_due_ms
        if connected and due_ms is not None:
            times.append(due_ms)
        return min(times, default=None)

    def work(
        self, hosts: Mapping[str, ModelHost], now_ms: int, *, connected: bool
    ) -> list[tuple[str, bytes]]:
        """Close the windows that are due, and return what is to be published: (topic, payload)."""
        if now_ms >= self._save_due_ms or self._save_due_ms - now_ms > SAVE_EVERY_MS:
            self._save_due_ms = now_ms + SAVE_EVERY_MS
            # Before new windows come in: what was sent a moment ago is about to be acknowledged.
            self._save(worth=self._outbox.owed)
        for model, schedule in self._schedules.items():
            wait_ms = schedule.due_ms - now_ms
            interval_ms = schedule.every_ms
            if not connected:
                interval_ms = max(interval_ms, OFFLINE_INTERVAL_MS)
            if wait_ms > interval_ms:  # the clock was set back
                schedule.due_ms = now_ms
            if schedule.due_ms > now_ms:
                continue
            schedule.due_ms += interval_ms
            if schedule.due_ms <= now_ms:
                schedule.due_ms = now_ms + interval_ms
            host = hosts.get(model)
            if host is not None:
                for window in host.collect(now_ms=now_ms, close=True):
                    self._outbox.add(model, self._session, window)
        if not connected:
            return []
        return [
            (topics.report(self._fleet, self._device, model), payload)
            for model, payload in self._outbox.messages(now_ms)
        ]

    def end(self, hosts: Mapping[str, ModelHost], now_ms: int) -> list[tuple[str, bytes]]:
        """Close every window, store what the server has not got, return it for a last try."""
        for model, host in hosts.items():
            for window in host.close(now_ms=now_ms):
                self._outbox.add(model, self._session, window)
        self._save(worth=len(self._outbox) > 0)
        return [
            (topics.report(self._fleet, self._device, model), payload)
            for model, payload in self._outbox.messages()
        ]

    def _save(self, *, worth: bool) -> None:
        """Store the outbox if it is worth that, otherwise see to it that none is stored."""
        try:
            if worth:
                self._store.save_outbox(self._outbox.encode())
                self._saved = True
            elif self._saved:
                self._store.clear_outbox()
                self._saved = False
        except OSError as error:
            _LOG.warning("telemetry cannot be stored: %s", error)
