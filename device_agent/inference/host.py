"""The host of one model: slot, telemetry and shadow behind one object that the shell drives.

Decides how the core's effects become changes of the slot, and which recorder counts what: each
stretch of a release being active has a recorder of its own, closed when the stretch ends. What is
to run, and whether a window is sent, kept or given up, is decided elsewhere.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from device_agent.errors import InferenceFailed, InputRejected, PredictionError, StepFailed
from device_agent.inference import process_memory
from device_agent.inference.artifact_file import read_verified
from device_agent.inference.golden import class_scores, first_row, read_golden
from device_agent.inference.probe import Prober
from device_agent.inference.recorder import Figures, Recorder
from device_agent.inference.session import Loader, ModelSession
from device_agent.inference.shadow import CPU_SHARE, Shadow
from device_agent.inference.slot import Slot, warm_up
from fleet_contract.errors import Reason
from fleet_contract.manifest import Manifest, Variant
from fleet_contract.messages.report import Role, Window


class Prediction(dict[str, NDArray[Any]]):
    """The outputs by name; ``release`` is the digest of the release that made them."""

    __slots__ = ("release",)

    def __init__(self, outputs: Mapping[str, NDArray[Any]], release: str) -> None:
        super().__init__(outputs)
        self.release = release


@dataclass(eq=False)
class BuiltRelease:
    """A release with a warm session; ``recorder`` counts for it while it is active."""

    digest: str
    manifest: Manifest
    session: ModelSession
    recorder: Recorder


class ModelHost:
    """Runs one model of a device. ``predict`` may be called from any thread at any time; the other
    methods change the slot and wait for each other.
    """

    def __init__(
        self,
        runtime: Loader,
        prober: Prober,
        *,
        ticks_ns: Callable[[], int],
        shadow_cpu_share: float = CPU_SHARE,
        drain_s: float = 5.0,
    ) -> None:
        """Make a host without a model.

        Args:
            runtime: what builds sessions.
            prober: tries artifacts; may be shared with other hosts.
            ticks_ns: a monotonic clock, for latencies.
            shadow_cpu_share: of one processor, for a candidate.
            drain_s: how long a swap waits for calls that are running on the old release.
        """
        self._runtime = runtime
        self._prober = prober
        self._ticks_ns = ticks_ns
        self._shadow_cpu_share = shadow_cpu_share
        self._drain_s = drain_s
        self._slot: Slot[BuiltRelease] = Slot()
        self._changing = threading.RLock()
        self._candidate: BuiltRelease | None = None
        self._shadow: Shadow | None = None
        self._shadowed: BuiltRelease | None = None
        self._closed: list[Window] = []
        self._last_start_ms = -1

    # --- for the application ------------------------------------------------------------------

    def predict(self, inputs: Mapping[str, NDArray[Any]]) -> Prediction:
        """Return what the active release answers.

        Args:
            inputs: the manifest's inputs by name, in its types and shapes.

        Raises:
            NoModel, ModelDisabled, InputRejected, InferenceFailed: see :mod:`device_agent.errors`.
        """
        seat = self._slot.enter()
        built = seat.built
        recorder = built.recorder
        try:
            started_ns = self._ticks_ns()
            built.session.check(inputs)
            outputs = built.session.run(inputs)
            latency_us = (self._ticks_ns() - started_ns) // 1000
            recorder.succeeded(inputs, outputs, latency_us)
        except PredictionError:
            recorder.failed()
            raise
        finally:
            self._slot.leave(seat)
        shadow = self._shadow
        if shadow is not None:
            shadow.offer(inputs, outputs, latency_us)
        return Prediction(outputs, built.digest)

    # --- for the shell ------------------------------------------------------------------------

    @property
    def active(self) -> str:
        """Digest of the release that answers (or would, if not disabled); empty for none."""
        built = self._slot.active
        return built.digest if built is not None else ""

    @property
    def standby(self) -> str:
        """Digest of the release kept warm; empty for none."""
        built = self._slot.standby
        return built.digest if built is not None else ""

    @property
    def disabled(self) -> bool:
        return self._slot.disabled

    def prepare(
        self,
        digest: str,
        manifest: Manifest,
        variant: Variant,
        path: Path,
        golden_path: Path,
        *,
        now_ms: int,
        probed_before: bool = False,
    ) -> None:
        """Try a release in a child process, then build and warm it beside what runs.

        It takes the place of another candidate. ``probed_before`` leaves the child out, for what
        this device ran already. What is active, standby or candidate is not built again.

        Raises:
            StepFailed: with the reason; what runs is not touched.
        """
        if self._find(digest) is not None:
            return
        # Not under the lock: going back to the standby must never wait for a probe or a build.
        if not probed_before:
            verdict = self._prober.probe(path, golden_path, manifest, variant)
            if verdict.reason is not None:
                raise StepFailed(verdict.reason, verdict.detail)
        golden = read_golden(read_verified(golden_path, manifest.golden.file))
        session = self._runtime.load(path, manifest, variant)
        try:
            inputs = first_row(golden, manifest)
            session.check(inputs)
            warm_up(session, inputs)
        except (InferenceFailed, InputRejected) as error:
            raise StepFailed(Reason.BROKEN_MODEL, f"it failed while warming: {error}") from error
        recorder = Recorder(manifest.features, digest, Role.ACTIVE, now_ms=now_ms)
        with self._changing:
            if self._find(digest) is None:
                self._candidate = BuiltRelease(digest, manifest, session, recorder)

    def activate(self, digest: str, *, now_ms: int) -> None:
        """Let this release answer: the candidate, or the standby, or the active one after
        :meth:`disable`. No model is read.

        Raises:
            StepFailed: ``activation_failed`` if it is none of these.
        """
        with self._changing:
            built = self._find(digest)
            if built is None:
                raise StepFailed(Reason.ACTIVATION_FAILED, "the release is not built")
            old = self._slot.active
            if self._shadowed is built:
                self.stop_shadow(now_ms=now_ms)
            if built is not old:
                built.recorder = self._new_recorder(built, Role.ACTIVE, now_ms)
            if built is self._slot.standby:
                self._slot.revert_to_standby(drain_s=self._drain_s)
            else:
                self._slot.activate(built, drain_s=self._drain_s)
            if built is self._candidate:
                self._candidate = None
            if old is not None and old is not built:
                self._closed.append(old.recorder.roll(now_ms))

    def seat_standby(self, digest: str) -> None:
        """Keep the candidate as the standby, as a restart finds it.

        Raises:
            StepFailed: ``activation_failed`` if it is not the candidate.
        """
        with self._changing:
            if self._candidate is None or self._candidate.digest != digest:
                raise StepFailed(Reason.ACTIVATION_FAILED, "the release is not built")
            self._slot.seat_standby(self._candidate)
            self._candidate = None

    def revert(self, *, now_ms: int) -> str:
        """Exchange the active release for the standby without reading a model; returns its digest.

        Raises:
            StepFailed: ``activation_failed`` if there is no standby.
        """
        with self._changing:
            self.activate(self.standby, now_ms=now_ms)
            return self.active

    def disable(self) -> None:
        """Make predictions raise ModelDisabled until the next :meth:`activate`."""
        with self._changing:
            self._slot.disable()

    def drop_standby(self) -> None:
        """Free the memory of the standby."""
        with self._changing:
            self._slot.drop_standby(drain_s=self._drain_s)

    def drop_candidate(self, *, now_ms: int) -> None:
        """Free the memory of a candidate that will not be activated; its shadow run ends first."""
        with self._changing:
            if self._candidate is None:
                return
            if self._shadowed is self._candidate:
                self.stop_shadow(now_ms=now_ms)
            self._candidate = None
            process_memory.give_back()

    def start_shadow(self, digest: str, *, now_ms: int) -> None:
        """Run the candidate (or the standby) on a sample of what the active release answers.

        Raises:
            StepFailed: ``activation_failed`` if it is not built, or answers already.
        """
        with self._changing:
            built = self._find(digest)
            if built is None or built is self._slot.active:
                raise StepFailed(Reason.ACTIVATION_FAILED, "there is no such release to shadow")
            if self._shadowed is built:
                return
            self.stop_shadow(now_ms=now_ms)
            self._shadowed = built
            self._shadow = Shadow(
                built.session,
                self._new_recorder(built, Role.SHADOW, now_ms),
                scores=class_scores(built.manifest.features),
                ticks_ns=self._ticks_ns,
                cpu_share=self._shadow_cpu_share,
            )

    def stop_shadow(self, *, now_ms: int) -> None:
        """End the shadow run; the release stays built."""
        with self._changing:
            shadow, self._shadow, self._shadowed = self._shadow, None, None
            if shadow is not None:
                shadow.stop()
                self._closed.append(shadow.recorder.roll(now_ms))

    def collect(self, *, now_ms: int, close: bool) -> list[Window]:
        """Return the windows that ended since the last call, and those that are open: closed now
        and followed by new ones, or as they stand.
        """
        with self._changing:
            windows, self._closed = self._closed, []
            built, shadow = self._slot.active, self._shadow
            recorders = [built.recorder] if built is not None else []
            recorders += [shadow.recorder] if shadow is not None else []
            windows += [
                recorder.roll(now_ms) if close else recorder.snapshot(now_ms)
                for recorder in recorders
            ]
            self._last_start_ms = max(
                [self._last_start_ms, *(recorder.start_ms for recorder in recorders)]
            )
            return windows

    def figures(self) -> Figures | None:
        """Return what the active release did since it became active, None without one."""
        built = self._slot.active
        return built.recorder.figures() if built is not None else None

    def close(self, *, now_ms: int) -> list[Window]:
        """End the shadow run, make predictions raise NoModel, return the last windows."""
        with self._changing:
            self.stop_shadow(now_ms=now_ms)
            windows = self.collect(now_ms=now_ms, close=True)
            self._slot = Slot()
            self._candidate = None
            process_memory.give_back()
            return windows

    def _find(self, digest: str) -> BuiltRelease | None:
        places = (self._slot.active, self._slot.standby, self._candidate, self._shadowed)
        return next((item for item in places if item is not None and item.digest == digest), None)

    def _new_recorder(self, built: BuiltRelease, role: Role, now_ms: int) -> Recorder:
        # A release that comes back within a millisecond, or after the clock was set back, must not
        # continue an older window on the server.
        self._last_start_ms = max(now_ms, self._last_start_ms + 1)
        return Recorder(built.manifest.features, built.digest, role, now_ms=self._last_start_ms)
