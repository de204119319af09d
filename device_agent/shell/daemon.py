"""The loop of one agent: one thread owns the state, takes events one by one, performs effects.

Decides what wakes the loop: an event, the core's timer, telemetry that is due, the guard. What an
event means is decided in the core. An error in here costs one event and is logged; it never ends
the loop, and the models answer whatever happens to it.
"""

import logging
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata

from device_agent.core.events import Booted, Connected, Disconnected, Event, Tick
from device_agent.core.state import Record, State
from device_agent.core.step import step
from device_agent.errors import NotEnrolled, StartFailed
from device_agent.inference.host import ModelHost
from device_agent.shell import release_files
from device_agent.shell.catalogue import FOLDER, Catalogue
from device_agent.shell.clock import Clock
from device_agent.shell.following import Origins
from device_agent.shell.guard import Guard
from device_agent.shell.http_source import Canceled, HttpSource, Leads
from device_agent.shell.identity import DeviceIdentity, load_identity
from device_agent.shell.lock import lock
from device_agent.shell.mqtt import BrokerConnection
from device_agent.shell.performing import Performer, needed_manifests
from device_agent.shell.store import Store
from device_agent.shell.telemetry import Telemetry
from device_agent.shell.tls import Tls, Trouble
from device_agent.shell.upkeep import Upkeep
from device_agent.shell.workshop import Workshop
from fleet_contract.errors import Refused
from fleet_contract.messages.progress import Phase

GUARD_EVERY_MS = 1_000
SHORTEST_WAIT_MS = 5
LONGEST_WAIT_MS = 5_000
_WAITING_EVENTS = 4096

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """Where one model stands: digests are those of manifests, empty for none."""

    model: str
    phase: Phase
    active: str
    version: str
    standby: str
    target: str
    disabled: bool
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class AgentStatus:
    """Where an agent stands."""

    fleet: str
    device: str
    connected: bool
    models: dict[str, ModelStatus]


class Daemon:
    """Runs one enrolled device. ``start`` once, ``stop`` once."""

    def __init__(
        self,
        store: Store,
        workshop: Workshop,
        clock: Clock,
        download_origins: Sequence[str] = (),
    ) -> None:
        """Read what the store holds; nothing runs yet.

        Args:
            store: the device's folder.
            workshop: tries and runs models.
            clock: the machine's.
            download_origins: where else the server may lead to for files.

        Raises:
            NotEnrolled: if the device has not joined a fleet.
            StartFailed: if its identity or an origin cannot be used.
        """
        self._store = store
        self._workshop = workshop
        self._clock = clock
        self._identity = self._load_identity()
        leads = self._leads(download_origins)
        self._queue: queue.Queue[Event | None] = queue.Queue(_WAITING_EVENTS)
        self._stopping = threading.Event()
        self._changed = threading.Condition()
        self._guards: dict[str, Guard] = {}
        self._guard_due_ms = 0
        self._lock_file = -1
        self._thread: threading.Thread | None = None
        self._telemetry = Telemetry(
            store, clock, fleet=self._identity.fleet, device=self._identity.device
        )
        identity = self._identity
        tls = Tls(
            store.folder,
            identity.device,
            now_ms=clock.now_ms,
            time_floor_ms=lambda: self._state.record.time_floor_ms,
        )
        try:
            record = store.load_record() or self._first_record()
            self._state = State(record)
            self._connection = BrokerConnection(
                identity.broker,
                client_id=identity.device,
                clock=clock,
                emit=self._arrived,
                tls=tls.context,
                notice=self._notice,
            )
            artifacts = HttpSource(
                identity.artifacts, ticks_ns=clock.ticks_ns, tls=tls.context, leads=leads
            )
            catalogue = self._catalogue = Catalogue(
                store.folder / FOLDER, identity.server, clock, tls
            )
            self._upkeep = Upkeep(
                store=store,
                identity=identity,
                tls=tls,
                catalogue=catalogue,
                connection=self._connection,
                artifacts=artifacts,
                clock=clock,
                submit=workshop.submit,
                time_floor_ms=lambda: self._state.record.time_floor_ms,
                stopping=self._stopping.is_set,
            )
        except (OSError, ValueError, Refused) as error:
            raise StartFailed(f"the identity of this device cannot be used: {error}") from error
        self._performer = Performer(
            store=store,
            artifacts=artifacts,
            catalogue=catalogue,
            connection=self._connection,
            telemetry=self._telemetry,
            workshop=workshop,
            clock=clock,
            emit=self._queue.put,
            stopping=self._stopping,
        )

    def start(self) -> None:
        """Load what was active and begin; returns once the models answer as before.

        Raises:
            StartFailed: if another agent runs in this folder.
        """
        self._lock_file = lock(self._store.folder)
        if self._state.record.boot:
            # A record that begins anew names nothing, but what lies there need not be fetched.
            release_files.sweep(self._store, needed_manifests(self._state.record))
        session = self._clock.random_bytes(8).hex()
        self._telemetry.begin(session, self._clock.now_ms())
        ready = threading.Event()

        def run() -> None:
            self._guarded(lambda: self._feed(Booted(session, _version(), capabilities)))
            ready.set()
            self._run()

        capabilities = self._workshop.capabilities
        self._thread = threading.Thread(target=run, name="agent", daemon=True)
        self._thread.start()
        ready.wait()

    def stop(self, *, wait_s: float = 10.0) -> None:
        """Say goodbye, keep what the server has not got, and end. Predictions raise NoModel."""
        if self._thread is None:
            return
        self._stopping.set()
        self._queue.put(None)
        self._thread.join(wait_s)
        hosts = self._performer.hosts()
        for topic, payload in self._telemetry.end(hosts, self._clock.now_ms()):
            self._connection.publish(topic, payload, retain=False)
        self._connection.stop(self._performer.will)
        self._thread = None
        os.close(self._lock_file)

    def host(self, model: str) -> ModelHost:
        """Return the host that answers for a model, whether there is a release of it or not."""
        return self._performer.host(model)

    @property
    def state(self) -> State:
        """The core's state as of the last event."""
        return self._state

    def status(self) -> AgentStatus:
        """Return where the agent stands."""
        return status_of(self._state)

    def wait_until(self, condition: Callable[[State], bool], timeout_s: float) -> bool:
        """Wait until the state is as asked for; False if that took too long."""
        with self._changed:
            return self._changed.wait_for(lambda: condition(self._state), timeout_s)

    def _arrived(self, event: Event) -> None:
        """Take an event from the connection's thread."""
        if isinstance(event, Connected):
            event = Connected(self._catalogue.seen())
        self._queue.put(event)

    # --- the loop --------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                event = self._queue.get(timeout=self._wait_s())
            except queue.Empty:
                event = None
            if event is not None:
                self._guarded(lambda event=event: self._feed(event))  # type: ignore[misc]
            self._guarded(self._on_time)

    def _wait_s(self) -> float:
        now_ms = self._clock.now_ms()
        times = [
            self._guard_due_ms,
            self._performer.wake_ms,
            self._upkeep.wake_ms(),
            self._telemetry.next_due_ms(connected=self._state.live.connected),
        ]
        wait_ms = min([time - now_ms for time in times if time is not None])
        return min(max(wait_ms, SHORTEST_WAIT_MS), LONGEST_WAIT_MS) / 1000

    def _on_time(self) -> None:
        now_ms = self._clock.now_ms()
        wake_ms = self._performer.wake_ms
        if wake_ms is not None and now_ms >= wake_ms:
            self._performer.wake_ms = None
            self._feed(Tick())
        self._upkeep.on_time()
        connected = self._state.live.connected
        hosts = self._performer.hosts()
        for topic, payload in self._telemetry.work(hosts, now_ms, connected=connected):
            self._connection.publish(topic, payload, retain=False)
        if now_ms >= self._guard_due_ms or self._guard_due_ms - now_ms > GUARD_EVERY_MS:
            self._guard_due_ms = now_ms + GUARD_EVERY_MS
            for name, host in hosts.items():
                self._look_at(name, host, now_ms)

    def _look_at(self, name: str, host: ModelHost, now_ms: int) -> None:
        model = self._state.record.models.get(name)
        if model is None:
            return
        guard = self._guards.setdefault(name, Guard())
        tripped = guard.look(model, host.figures(), now_ms)
        if tripped is not None:
            _LOG.error("%s: %s; going back", name, tripped.detail)
            self._feed(tripped)

    def _feed(self, *arrived: Event) -> None:
        """Let the core take events in, and perform what it asks for, in order."""
        waiting = deque(arrived)
        while waiting:
            event = waiting.popleft()
            before = self._state
            after, effects = step(before, event, self._clock.now_ms())
            self._state = after
            _narrate(before, after, event)
            for effect in effects:
                try:
                    waiting.extend(self._performer.perform(effect, after))
                except Canceled:
                    return
                except Exception:
                    _LOG.exception("%s failed", type(effect).__name__)
        self._performer.tidy(self._state)
        with self._changed:
            self._changed.notify_all()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception:
            _LOG.exception("an event was lost")

    def _notice(self, trouble: Trouble | None) -> None:
        self._upkeep.notice(trouble)

    # --- starting --------------------------------------------------------------------------------

    def _load_identity(self) -> DeviceIdentity:
        try:
            return load_identity(self._store)
        except NotEnrolled as error:
            record = self._store.load_record()
            if record is None:
                raise
            # What ran here is known, and answers without anybody's word.
            _LOG.error(
                "this device stays offline until it starts anew, its models answer: %s", error
            )
            return DeviceIdentity.nowhere(record)

    def _leads(self, origins: Sequence[str]) -> Leads | None:
        try:
            allowed = Origins(origins, ticks_ns=self._clock.ticks_ns)
        except ValueError as error:
            raise StartFailed(f"the origins of downloads cannot be used: {error}") from error
        return allowed.find if origins else None

    def _first_record(self) -> Record:
        _LOG.error("there is no readable record: this device begins anew and fetches its models")
        return self._identity.first_record()


def status_of(state: State) -> AgentStatus:
    """Return what a person wants to know of a state."""
    models = {}
    for name, model in state.record.models.items():
        versions = {item.ref.digest: item.version for item in model.admitted}
        models[name] = ModelStatus(
            name,
            model.phase,
            model.active_digest,
            versions.get(model.active_digest, ""),
            model.standby_digest,
            model.target,
            model.disabled,
            model.reason.value if model.reason is not None else "",
            model.detail,
        )
    return AgentStatus(state.record.fleet, state.record.device, state.live.connected, models)


def _narrate(before: State, after: State, event: Event) -> None:
    """Say in the log what a person over a serial line wants to know."""
    if isinstance(event, Connected | Disconnected):
        return  # the connection has said so
    for name, model in after.record.models.items():
        old = before.record.models.get(name)
        if old is None or (old.phase, old.active_digest) != (model.phase, model.active_digest):
            _LOG.info(
                "%s: %s, active %s%s",
                name,
                model.phase.value,
                model.active_digest[:12] or "nothing",
                f" ({model.reason.value}: {model.detail})" if model.reason is not None else "",
            )
    known = {sequence for sequence, _ in before.live.refusals}
    for sequence, refusal in after.live.refusals:
        if sequence not in known:
            _LOG.warning("refused %s: %s: %s", refusal.topic, refusal.reason.value, refusal.detail)


def _version() -> str:
    try:
        return metadata.version("edgefleet")[:40]
    except metadata.PackageNotFoundError:
        return "unknown"
