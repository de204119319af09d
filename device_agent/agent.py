"""The agent inside an application: the daemon and the models in one process.

``Agent.open(folder)`` on a folder in which the device was enrolled, ``start()``, and then
``agent.model("digits").predict(inputs)``. Swaps and rollbacks happen underneath without a failed
call. One agent a folder; several in a process share a :class:`Workshop`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from numpy.typing import NDArray

from device_agent.core.state import State
from device_agent.errors import NoModel, StartFailed
from device_agent.inference.host import ModelHost, Prediction
from device_agent.shell.clock import Clock, SystemClock
from device_agent.shell.daemon import AgentStatus, Daemon
from device_agent.shell.store import Store
from device_agent.shell.workshop import Workshop
from fleet_contract.names import check_model


class Release(NamedTuple):
    """What answers predictions: the version for people, the manifest's digest for machines."""

    version: str
    digest: str


class LocalModel:
    """One model on this device, whichever release of it is active."""

    def __init__(self, name: str, host: ModelHost, daemon: Daemon) -> None:
        self.name = name
        self._host = host
        self._daemon = daemon

    def predict(self, inputs: Mapping[str, NDArray[Any]]) -> Prediction:
        """Return the outputs by name; ``release`` of the result is the digest that made them.

        Args:
            inputs: the model's inputs by name, in the types and shapes of its manifest.

        Raises:
            NoModel: nothing is active yet. ModelDisabled: use a fallback of your own.
            InputRejected, InferenceFailed: about this call only.
        """
        return self._host.predict(inputs)

    @property
    def release(self) -> Release | None:
        """What answers now, None if nothing does."""
        digest = "" if self._host.disabled else self._host.active
        return _release(self._daemon.state, self.name, digest) if digest else None


class Agent:
    """An enrolled device that runs in this process."""

    def __init__(self, daemon: Daemon, workshop: Workshop, *, owns_workshop: bool) -> None:
        self._daemon = daemon
        self._workshop = workshop
        self._owns_workshop = owns_workshop

    @classmethod
    def open(
        cls,
        folder: Path | str,
        *,
        workshop: Workshop | None = None,
        clock: Clock | None = None,
        download_origins: Sequence[str] = (),
    ) -> "Agent":
        """Open the folder of an enrolled device.

        Args:
            folder: where ``device-agent enroll`` stored the identity.
            workshop: shared with other agents of this process; its owner closes it.
            clock: the machine's, unless told otherwise.
            download_origins: where else the server may lead to for files, such as
                ``https://bucket.s3.eu-central-1.amazonaws.com``; by default nowhere.

        Raises:
            NotEnrolled: if the device has not joined a fleet.
            StartFailed: if the folder or an origin cannot be used.
        """
        try:
            store = Store(Path(folder))
        except OSError as error:
            raise StartFailed(f"{folder} cannot be used: {error}") from error
        used = workshop or Workshop()
        try:
            daemon = Daemon(store, used, clock or SystemClock(), download_origins)
        except Exception:
            if workshop is None:
                used.close()
            raise
        return cls(daemon, used, owns_workshop=workshop is None)

    def start(self) -> None:
        """Begin; returns when the models answer that were active before.

        Raises:
            StartFailed: if another agent runs in this folder.
        """
        self._daemon.start()

    def stop(self) -> None:
        """Leave the fleet's sight in order, and keep what it has not been told yet."""
        self._daemon.stop()
        if self._owns_workshop:
            self._workshop.close()

    def model(self, name: str) -> LocalModel:
        """Return a model by name; the fleet may bring it later.

        Raises:
            InvalidName: if no model can have this name.
        """
        return LocalModel(name, self._daemon.host(check_model(name)), self._daemon)

    def status(self) -> AgentStatus:
        """Return where the agent stands."""
        return self._daemon.status()

    def wait_for(
        self, model: str, *, digest: str = "", version: str = "", timeout_s: float
    ) -> Release:
        """Wait until a release of a model is active: this one, or any if none is named.

        Raises:
            NoModel: if that took longer than ``timeout_s`` seconds.
        """

        def active(state: State) -> Release | None:
            known = state.record.models.get(model)
            if known is None or known.disabled or not known.active_digest:
                return None
            release = _release(state, model, known.active_digest)
            fits = digest in ("", release.digest) and version in ("", release.version)
            return release if fits else None

        self._daemon.wait_until(lambda state: active(state) is not None, timeout_s)
        release = active(self._daemon.state)
        if release is None:
            wanted = version or digest[:12] or "any release"
            raise NoModel(f"{wanted} of {model} was not active after {timeout_s:g} s")
        return release

    def __enter__(self) -> "Agent":
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def _release(state: State, model: str, digest: str) -> Release:
    known = state.record.models.get(model)
    admitted = known.admitted if known is not None else []
    return Release(
        next((item.version for item in admitted if item.ref.digest == digest), ""), digest
    )
