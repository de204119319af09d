"""The probe: a new artifact is loaded and run for the first time in a child process.

Decides whether a release may be built in the agent's own process. The work is done by a helper
process that is kept warm (:mod:`device_agent.inference.probe_child`); several agents in one process
share one prober. A helper that fails or hangs is replaced, and the artifact in question is refused.
"""

import contextlib
import select
import subprocess
import sys
import threading
from pathlib import Path
from typing import BinaryIO, cast

from device_agent.inference.confinement import MEMORY_BYTES, environment
from device_agent.inference.probe_child import ProbeRequest, Verdict, read_frame, write_frame
from fleet_contract.errors import Reason
from fleet_contract.manifest import Manifest, Variant

TIMEOUT_S = 30.0
_GRACE_S = 15.0
"""Beyond a probe's own limit: the helper first imports the runtime, for seconds if it is slow."""


class Prober:
    """Tries artifacts, one at a time. Thread-safe; close it when no agent needs it any more."""

    def __init__(self, *, memory_bytes: int = MEMORY_BYTES, timeout_s: float = TIMEOUT_S) -> None:
        self._memory_bytes = memory_bytes
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._helper: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the helper ahead of the first probe, which then need not wait for its imports."""
        with self._lock:
            self._running()

    def probe(self, path: Path, golden_path: Path, manifest: Manifest, variant: Variant) -> Verdict:
        """Return whether the artifact loads and gives its golden outputs, within the limits.

        Never raises: whatever happens to the child is the verdict on what it was given.
        """
        needs = variant.requires.memory_bytes + variant.artifact.size_bytes
        request = ProbeRequest(
            str(path.absolute()),
            str(golden_path.absolute()),
            manifest,
            variant,
            max(self._memory_bytes, 2 * needs),
            self._timeout_s,
        )
        with self._lock:
            try:
                helper = self._running()
                write_frame(cast(BinaryIO, helper.stdin), request)
            except OSError:
                self._stop()
                try:
                    helper = self._running()
                    write_frame(cast(BinaryIO, helper.stdin), request)
                except OSError as error:
                    self._stop()
                    return Verdict(Reason.PROBE_CRASHED, f"no helper process: {error.strerror}")
            answers = cast(BinaryIO, helper.stdout)
            waiter = select.poll()  # select() fails on the numbers of a process with many sockets
            waiter.register(answers, select.POLLIN)
            ready = waiter.poll((self._timeout_s + _GRACE_S) * 1000)
            verdict = read_frame(answers, Verdict) if ready else None
            if verdict is None:
                self._stop()
                if not ready:
                    return Verdict(Reason.PROBE_TIMED_OUT, "the helper process gave no answer")
                return Verdict(Reason.PROBE_CRASHED, "the helper process ended")
            return verdict

    def close(self) -> None:
        """End the helper."""
        with self._lock:
            self._stop()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._helper is not None and self._helper.poll() is not None:
            self._stop()
        if self._helper is None:
            self._helper = subprocess.Popen(
                [sys.executable, "-m", "device_agent.inference.probe_child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env=environment(),
            )
        return self._helper

    def _stop(self) -> None:
        helper, self._helper = self._helper, None
        if helper is None:
            return
        helper.kill()
        for stream in (helper.stdin, helper.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):  # unsent bytes to a helper that is gone
                    stream.close()
        helper.wait()
