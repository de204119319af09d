"""A private Mosquitto: started, watched and stopped by this process.

Decides where it lives (one folder) and what happens when it dies (it is started again, with a
growing pause). Without security it listens on loopback only. Leaves out what it is told
(:mod:`.mosquitto_configuration`), and a Mosquitto that somebody else runs: that one is a URL.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pwd
import shutil
import signal
import socket
import ssl
from pathlib import Path

from fleet_server.broker.errors import (
    InsecureListenerError,
    MosquittoFailedError,
    MosquittoMissingError,
)
from fleet_server.broker.limits import MIB
from fleet_server.broker.mosquitto_configuration import LOG_FILE, MosquittoSecurity, configuration
from fleet_server.broker.takeover import throw_out

_LOG = logging.getLogger(__name__)
_LOOPBACK = "127.0.0.1"
# Debian installs it where only root's PATH looks.
_SEARCH_PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))
_START_TIMEOUT_S = 10.0
_STOP_TIMEOUT_S = 10.0
_POLL_S = 0.02
_RELOAD_S = 10.0
_TAKES_UP = (b"Reloading config", b" running")
"""What it writes when it reads its files at a signal, before who comes next, or has started."""
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 30.0
_START_ATTEMPTS = 3  # a free port may be taken by another process before Mosquitto has it


def find_mosquitto() -> Path | None:
    """The executable, or None where it is not installed."""
    found = shutil.which("mosquitto", path=_SEARCH_PATH)
    return None if found is None else Path(found)


class PrivateMosquitto:
    """One Mosquitto in ``folder``, which survives its death but not ours.

    Port 0 takes a free one, which is then kept across restarts.
    """

    def __init__(
        self,
        folder: Path,
        port: int = 0,
        *,
        host: str = _LOOPBACK,
        max_packet_size_bytes: int = MIB,
        security: MosquittoSecurity | None = None,
    ) -> None:
        """Raises ``InsecureListenerError`` for another host than loopback without security."""
        if security is None and host != _LOOPBACK:
            raise InsecureListenerError(
                f"a private Mosquitto listens on {host!r} only with certificates; use {_LOOPBACK}"
            )
        self._folder = folder.resolve()
        self._security = security
        self.host = host
        self.port = port
        self.restarts = 0
        self._max_packet_size_bytes = max_packet_size_bytes
        self._process: asyncio.subprocess.Process | None = None
        self._supervisor: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mqtt' if self._security is None else 'mqtts'}://{host}:{self.port}"

    @property
    def pid(self) -> int | None:
        """The process that runs now; None between a death and the restart."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def start(self) -> None:
        """Returns once it accepts connections.

        Raises ``MosquittoMissingError`` or ``MosquittoFailedError``.
        """
        executable = find_mosquitto()
        if executable is None:
            raise MosquittoMissingError(
                "mosquitto is not installed: install it (Debian: apt-get install mosquitto) or "
                "choose the embedded broker"
            )
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        await self._stop_orphan()
        chooses_port = self.port == 0
        for attempt in range(_START_ATTEMPTS):
            if chooses_port:
                self.port = _free_port(self.host)
            try:
                await self._launch(executable)
                break
            except MosquittoFailedError:
                if not chooses_port or attempt == _START_ATTEMPTS - 1:
                    raise
        self._supervisor = asyncio.create_task(self._supervise(executable))

    async def stop(self) -> None:
        """Stops watching, then ends the process (it saves its retained messages)."""
        if self._supervisor is not None:
            self._supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervisor
            self._supervisor = None
        await self._end_process()
        self._pid_file.unlink(missing_ok=True)

    def reload(self) -> None:
        """Have it read its certificates, revocation lists and access list anew.

        They hold for new connections; those that are there stay (see :mod:`.takeover`).
        """
        process = self._process
        if process is not None and process.returncode is None:
            process.send_signal(signal.SIGHUP)

    async def take_up(self) -> None:
        """Return once it has read its files anew: what is decided by them from now on is by these.

        Raises ``MosquittoFailedError`` if it does not say so in time.
        """
        written = self._log_end()
        self.reload()
        try:
            async with asyncio.timeout(_RELOAD_S):
                while not self._took_up(written):  # noqa: ASYNC110
                    await asyncio.sleep(_POLL_S)
        except TimeoutError as error:
            raise MosquittoFailedError(
                f"mosquitto did not read its files within {_RELOAD_S:g} s; see {self._log_path}"
            ) from error

    async def expel(self, identity: str, tls: ssl.SSLContext, *, clears: str = "") -> None:
        """End the connection of a client whose certificate is on the list that was taken up.

        ``tls`` shows another certificate of that name, and what is retained on the topic ``clears``
        goes with the client. Raises as :func:`.takeover.throw_out`.
        """
        await throw_out(_reachable(self.host), self.port, identity, tls, clears=clears)

    @property
    def _log_path(self) -> Path:
        return self._folder / LOG_FILE

    def _log_end(self) -> tuple[int, int]:
        """Return which file the log is (each start has its own), and its length in bytes."""
        try:
            found = self._log_path.stat()
        except FileNotFoundError:
            return 0, 0
        return found.st_ino, found.st_size

    def _took_up(self, written: tuple[int, int]) -> bool:
        """Whether its log says, after what was written, that it reads its files or has started."""
        file, offset = written
        try:
            with self._log_path.open("rb") as log:
                log.seek(offset if os.fstat(log.fileno()).st_ino == file else 0)
                return any(words in line for line in log for words in _TAKES_UP)
        except FileNotFoundError:
            return False

    @property
    def _pid_file(self) -> Path:
        return self._folder / "mosquitto.pid"

    async def _launch(self, executable: Path) -> None:
        if await _accepts(self.host, self.port):
            # Its answer would be taken for ours.
            raise MosquittoFailedError(f"port {self.port} is in use by another process")
        with contextlib.suppress(FileNotFoundError):
            # Mosquitto appends to it for ever.
            self._log_path.replace(self._log_path.with_suffix(".log.1"))
        config = self._folder / "mosquitto.conf"
        config.write_text(
            configuration(
                folder=self._folder,
                host=self.host,
                port=self.port,
                max_packet_size_bytes=self._max_packet_size_bytes,
                # Started by root it would change to another user, who cannot write this folder.
                user=pwd.getpwuid(os.geteuid()).pw_name,
                security=self._security,
            )
        )
        self._process = await asyncio.create_subprocess_exec(
            str(executable),
            "-c",
            str(config),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            # Ctrl-C in a terminal is for us; we then stop it in order.
            start_new_session=True,
        )
        self._pid_file.write_text(str(self._process.pid))
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                while not await _accepts(self.host, self.port):
                    if self._process.returncode is not None:
                        raise MosquittoFailedError(
                            f"mosquitto ended at once with exit status {self._process.returncode};"
                            f" see {self._log_path}"
                        )
                    await asyncio.sleep(_POLL_S)
        except TimeoutError as error:
            await self._end_process()
            raise MosquittoFailedError(
                f"mosquitto did not accept connections within {_START_TIMEOUT_S:g} s"
            ) from error

    async def _supervise(self, executable: Path) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            if self._process is not None:
                status = await self._process.wait()
                _LOG.error("mosquitto ended with status %s; starting it again", status)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            try:
                await self._launch(executable)
            except (MosquittoFailedError, OSError):
                _LOG.exception("mosquitto did not start again")
            else:
                self.restarts += 1
                pause_s = _FIRST_PAUSE_S

    async def _end_process(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            async with asyncio.timeout(_STOP_TIMEOUT_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()

    async def _stop_orphan(self) -> None:
        """Ends the Mosquitto of a predecessor that was killed: it holds the port and the folder."""
        pid = self._orphan_pid()
        if pid is None:
            return
        os.kill(pid, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STOP_TIMEOUT_S):
                # No child of ours, so there is nothing to wait for but its disappearance.
                while self._orphan_pid() is not None:  # noqa: ASYNC110
                    await asyncio.sleep(_POLL_S)

    def _orphan_pid(self) -> int | None:
        try:
            pid = int(self._pid_file.read_text())
            command_line = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            return None
        # The number may belong to another process by now.
        config = str(self._folder / "mosquitto.conf").encode()
        return pid if config in command_line else None


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


async def _accepts(host: str, port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(_reachable(host), port)
    except OSError:
        return False
    writer.close()
    return True


def _reachable(host: str) -> str:
    """Return where this machine reaches what listens on an address, also on all addresses."""
    return {"0.0.0.0": _LOOPBACK, "::": "::1"}.get(host, host)
