"""Performing the core's effects, one at a time and in order.

Decides where each is done: what must not wait (storing, exchanging releases, publishing) on the
agent's own thread; what may take long (fetching, probing) on the workshop's, whose outcome comes
back as an event. Whatever goes wrong becomes an event too, or a line in the log.
"""

import logging
import threading
from collections.abc import Callable
from functools import partial

from device_agent.core import effects as do
from device_agent.core.effects import Effect
from device_agent.core.events import (
    Activated,
    Event,
    Failed,
    Fetched,
    KeysetFetched,
    Probed,
    RootRefused,
    RootTaken,
)
from device_agent.core.state import DISABLED, Record, State
from device_agent.core.transitions import SETTLED
from device_agent.errors import StepFailed
from device_agent.inference.host import ModelHost
from device_agent.shell import release_files
from device_agent.shell.catalogue import Catalogue
from device_agent.shell.clock import Clock, share_of
from device_agent.shell.http_source import Canceled, HttpSource
from device_agent.shell.mqtt import BrokerConnection
from device_agent.shell.release_files import Device, ReleaseFiles
from device_agent.shell.store import Store
from device_agent.shell.telemetry import Telemetry
from device_agent.shell.workshop import Workshop
from fleet_contract.errors import Reason
from fleet_contract.trust.directive import ReleaseRef

KEYSET_SPREAD_MS = 1_000
"""Devices that meet an unknown key together ask for the keyset over so long a time."""

_DAMAGED = (Reason.WRONG_HASH, Reason.WRONG_SIZE)
_LOG = logging.getLogger(__name__)


class Performer:
    """Performs effects for one agent.

    ``emit`` takes an event from a worker; ``stopping`` ends what waits.
    """

    def __init__(
        self,
        *,
        store: Store,
        artifacts: HttpSource,
        catalogue: Catalogue,
        connection: BrokerConnection,
        telemetry: Telemetry,
        workshop: Workshop,
        clock: Clock,
        emit: Callable[[Event], None],
        stopping: threading.Event,
    ) -> None:
        self._store = store
        self._artifacts = artifacts
        self._catalogue = catalogue
        self._connection = connection
        self._telemetry = telemetry
        self._workshop = workshop
        self._clock = clock
        self._emit = emit
        self._stopping = stopping
        self._hosts: dict[str, ModelHost] = {}
        self._hosting = threading.Lock()
        # One download at a time: a second one of the same file would write into the first one's.
        self._downloading = threading.Lock()
        self._cancellations: dict[tuple[str, str], threading.Event] = {}
        self.wake_ms: int | None = None
        self.will: tuple[str, bytes] | None = None

    def host(self, model: str) -> ModelHost:
        """Return the host of a model, made when somebody first asks. Thread-safe."""
        with self._hosting:
            host = self._hosts.get(model)
            if host is None:
                host = self._hosts[model] = ModelHost(
                    self._workshop.runtime, self._workshop.prober, ticks_ns=self._clock.ticks_ns
                )
            return host

    def hosts(self) -> dict[str, ModelHost]:
        """Return the hosts there are, by model."""
        with self._hosting:
            return dict(self._hosts)

    def perform(self, effect: Effect, state: State) -> list[Event]:
        """Do it, or begin to; ``state`` is the one that asked. Returns what came of it at once.

        Raises:
            Canceled: if the agent stops before the record could be stored.
        """
        match effect:
            case do.Persist(record):
                self._persist(record)
            case do.Connect(topic, payload):
                self.will = (topic, payload)
                self._connection.connect(topic, payload)
            case do.Subscribe(filters):
                self._connection.subscribe(filters)
            case do.Unsubscribe(filters):
                self._connection.unsubscribe(filters)
            case do.Publish(topic, payload, retain):
                self._connection.publish(topic, payload, retain=retain)
            case do.WakeAt(at_ms):
                self.wake_ms = at_ms
            case do.Acknowledged(ack):
                self._telemetry.acknowledge(ack)
            case do.ReportEvery(model, every_ms):
                self._telemetry.every(model, every_ms, self._clock.now_ms())
            case do.FetchKeyset() | do.TakeRoot() | do.Fetch():
                self._ask_server(effect, state)
            case do.CancelFetch(model, digest):
                cancellation = self._cancellations.pop((model, digest), None)
                if cancellation is not None:
                    cancellation.set()
            case do.Probe(model, release):
                self._workshop.submit(lambda: self._probe(model, release, state))
            case do.Discard():
                release_files.sweep(self._store, needed_manifests(state.record))
            case _:
                return self._change_host(effect, state)
        return []

    def tidy(self, state: State) -> None:
        """Free candidates of models about which nothing is under way."""
        for name, host in self.hosts().items():
            model = state.record.models.get(name)
            if model is not None and model.phase in SETTLED:
                host.drop_candidate(now_ms=self._clock.now_ms())

    # --- on the agent's own thread ---------------------------------------------------------------

    def _persist(self, record: Record) -> None:
        # Nothing that follows may be done before: so this is tried until it succeeds. The models
        # answer meanwhile.
        while True:
            try:
                self._store.save_record(record)
                return
            except OSError as error:
                _LOG.error("the record cannot be stored, trying again: %s", error)
            if self._stopping.wait(1.0):
                raise Canceled

    def _ask_server(self, effect: do.FetchKeyset | do.TakeRoot | do.Fetch, state: State) -> None:
        match effect:
            case do.FetchKeyset():
                self._workshop.submit(lambda: self._fetch_keyset(state))
            case do.TakeRoot(document):
                self._workshop.submit(lambda: self._take_root(document))
            case do.Fetch(model, release):
                canceled = self._cancellations[model, release.digest] = threading.Event()
                self._workshop.submit(lambda: self._fetch(model, release, state, canceled))

    def _change_host(self, effect: Effect, state: State) -> list[Event]:
        now_ms = self._clock.now_ms()
        match effect:
            case do.Load():
                return self._load(effect, state)
            case do.Activate(model, release):
                return self._attempt(
                    model,
                    release.digest,
                    lambda: self.host(model).activate(release.digest, now_ms=now_ms),
                    [Activated(model, release.digest)],
                )
            case do.Disable(model):
                self.host(model).disable()
                return [Activated(model, DISABLED)]
            case do.StartShadow(model, release):
                return self._attempt(
                    model,
                    release.digest,
                    lambda: self.host(model).start_shadow(release.digest, now_ms=now_ms),
                    [],
                )
            case do.StopShadow(model):
                self.host(model).stop_shadow(now_ms=now_ms)
            case do.DropStandby(model):
                self.host(model).drop_standby()
        return []

    def _attempt(
        self, model: str, digest: str, work: Callable[[], None], outcome: list[Event]
    ) -> list[Event]:
        try:
            work()
        except StepFailed as failed:
            return [Failed(model, digest, failed.reason, failed.detail)]
        except Exception as error:
            _LOG.exception("%s could not be changed", model)
            return [Failed(model, digest, Reason.ACTIVATION_FAILED, f"{error!r}"[:200])]
        return outcome

    def _load(self, effect: do.Load, state: State) -> list[Event]:
        events = list[Event]()
        for release in (effect.active, effect.standby):
            if release is not None:
                active = release is effect.active
                work = partial(self._load_one, effect.model, release, state, active=active)
                failed = self._attempt(effect.model, release.digest, work, [])
                # The core asks for the active one only: a standby is found missing when it is used.
                events += failed if active else []
        known = state.record.models.get(effect.model)
        if known is not None and known.disabled:
            self.host(effect.model).disable()
        return events

    def _load_one(self, model: str, release: ReleaseRef, state: State, *, active: bool) -> None:
        """Build what ran here before; so it is not tried in a child again."""
        self._prepare(model, release, state, probed_before=True)
        if active:
            self.host(model).activate(release.digest, now_ms=self._clock.now_ms())
        else:
            self.host(model).seat_standby(release.digest)

    # --- on a worker -----------------------------------------------------------------------------

    def _fetch(
        self, model: str, release: ReleaseRef, state: State, canceled: threading.Event
    ) -> None:
        def unwanted() -> bool:
            return canceled.is_set() or self._stopping.is_set()

        try:
            with self._downloading:
                if unwanted():
                    raise Canceled
                files = self._held(model, release, state) or release_files.fetch_release(
                    self._artifacts,
                    self._store,
                    self._catalogue,
                    model,
                    release,
                    device=self._device(state),
                    time_floor_ms=state.record.time_floor_ms,
                    canceled=unwanted,
                )
        except Canceled:
            return
        except StepFailed as failed:
            self._emit(Failed(model, release.digest, failed.reason, failed.detail))
        except Exception as error:
            _LOG.exception("fetching a release of %s failed", model)
            detail = f"{error!r}"[:200]
            self._emit(Failed(model, release.digest, Reason.DOWNLOAD_FAILED, detail))
        else:
            manifest = files.manifest
            self._emit(
                Fetched(
                    model,
                    release.digest,
                    release.manifest,
                    manifest.version,
                    manifest.release_counter,
                )
            )

    def _held(self, model: str, release: ReleaseRef, state: State) -> ReleaseFiles | None:
        """Return the files of a release that was admitted here and is whole: no network for it."""
        known = state.record.models.get(model)
        if known is None or known.holds(release.digest) is None:
            return None
        try:
            return release_files.open_release(
                self._store, model, release.digest, self._device(state)
            )
        except StepFailed:
            return None

    def _probe(self, model: str, release: ReleaseRef, state: State) -> None:
        if self._stopping.is_set():
            return
        outcome = self._attempt(
            model,
            release.digest,
            lambda: self._prepare(model, release, state, probed_before=False),
            [Probed(model, release.digest)],
        )
        for event in outcome:
            self._emit(event)

    def _prepare(
        self, model: str, release: ReleaseRef, state: State, *, probed_before: bool
    ) -> None:
        files = release_files.open_release(self._store, model, release.digest, self._device(state))
        try:
            self.host(model).prepare(
                files.digest,
                files.manifest,
                files.variant,
                files.artifact,
                files.golden,
                now_ms=self._clock.now_ms(),
                probed_before=probed_before,
            )
        except StepFailed as failed:
            if failed.reason in _DAMAGED:
                release_files.drop_damaged(self._store, files)
            raise

    def _fetch_keyset(self, state: State) -> None:
        # A new key shows on all devices in the same moment.
        if self._stopping.wait(share_of(self._clock, KEYSET_SPREAD_MS) / 1000):
            return
        try:
            document = self._catalogue.keyset(
                time_floor_ms=state.record.time_floor_ms, canceled=self._stopping.is_set
            )
        except Canceled:
            return
        except StepFailed as failed:
            _LOG.warning("no keyset: %s", failed)
            return
        self._emit(KeysetFetched(document))

    def _take_root(self, document: bytes) -> None:
        try:
            taken = self._catalogue.take_root(document, canceled=self._stopping.is_set)
        except Canceled:
            return
        except StepFailed as failed:
            if failed.reason is Reason.DOWNLOAD_FAILED:
                _LOG.warning("the roots up to the newest are not to be had: %s", failed)
            else:
                self._emit(RootRefused(failed.reason, failed.detail))
            return
        except OSError as error:
            _LOG.error("the newest root cannot be stored: %s", error)
            return
        if taken:
            self._emit(RootTaken())

    def _device(self, state: State) -> Device:
        assignment = state.record.assignment
        labels = assignment.labels if assignment is not None else {}
        return Device(self._workshop.capabilities, labels)


def needed_manifests(record: Record) -> set[str]:
    """Return the digests of the manifests that a record still names."""
    needed = set[str]()
    for model in record.models.values():
        needed |= {model.active_digest, model.standby_digest, model.target}
        needed |= {item.ref.digest for item in model.admitted}
    return needed
