"""The demo's server: the real ``edgefleet server`` as a process of its own, on free ports.

Decides where it keeps its data and when it is ready. What it is asked to do is in
:mod:`simulator.demo.run`.
"""

import subprocess
import sys
from pathlib import Path
from types import TracebackType

import httpx

from fleet_server.command_line.connection import Connection, Target
from fleet_server.data_folder import TOKEN_FILE, remembered_url
from simulator import clock
from simulator.errors import SimulatorError

START_S = 30.0
STOP_S = 15.0


class ServerProcess:
    """A server that lives as long as a ``with`` block, or longer if it is let go."""

    def __init__(self, folder: Path, *, broker: str) -> None:
        self.folder = folder
        self.log = folder.parent / "server.log"
        self._broker = broker
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "ServerProcess":
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "fleet_server.command_line"]
        command += ["--data-dir", str(self.folder), "server"]
        command += ["--port", "0", "--device-port", "0"]
        command += ["--broker", self._broker, "--controller-interval-ms", "200"]
        command += ["--log-file", str(self.log)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def process_id(self) -> int:
        """Return the process to end when the server is kept."""
        assert self._process is not None
        return self._process.pid

    @property
    def url(self) -> str:
        """Return the address of the API, empty before it is known."""
        return remembered_url(self.folder) or ""

    @property
    def token(self) -> str:
        """Return the administrator's token."""
        return (self.folder / TOKEN_FILE).read_text(encoding="ascii").strip()

    def wait_until_ready(self) -> Connection:
        """Return a connection to the API once the server says that it can do its work.

        Raises:
            SimulatorError: if it ended or took too long; the end of its log is in the message.
        """
        deadline_s = clock.monotonic_s() + START_S
        while clock.monotonic_s() < deadline_s:
            if self._process is None or self._process.poll() is not None:
                raise SimulatorError(f"the server ended at once:\n{self._last_words()}")
            url = remembered_url(self.folder)
            if url and (self.folder / TOKEN_FILE).exists() and _ready(url):
                return Connection(Target(url=url, token=self.token, data_dir=self.folder))
            clock.sleep_s(0.05)
        raise SimulatorError(f"the server was not ready in {START_S} s:\n{self._last_words()}")

    def let_go(self) -> None:
        """Leave the server running when the block ends."""
        self._process = None

    def stop(self) -> None:
        """End the server in order, and by force if it does not end."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _last_words(self) -> str:
        try:
            return "\n".join(self.log.read_text(encoding="utf-8").splitlines()[-10:])
        except OSError:
            return "(it wrote no log)"


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready", timeout=2.0).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False
