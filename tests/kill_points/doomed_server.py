"""A fleet server that kills itself at every moment of a rollout, once each, and is started again.

    python -m tests.kill_points.doomed_server DATA_DIR PORT BROKER FOLDER

A moment is right before or right after a commit that writes rollout state or control rows, and
right before or right after (the broker has acknowledged) each publication of a directive. Commits
are numbered as they succeed, publications by their bytes; a moment that is in FOLDER/diary killed
already and lets the server pass. Nothing dies unless FOLDER/armed exists; directives up to the
epoch in that file are no part of it. The parent has imported
everything and forks, so that a restart takes a fraction of a second.
"""

from __future__ import annotations

import base64
import hashlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import event
from sqlmodel import Session

from fleet_contract import codec, limits
from fleet_contract.errors import InvalidName
from fleet_contract.topics import read_directive
from fleet_contract.trust.directive import Directive
from fleet_contract.trust.envelope import Envelope
from fleet_server import database, logs, serving
from fleet_server.dispatch import publisher
from fleet_server.dispatch.connection import Connection
from fleet_server.settings import Settings

WATCHED_TABLES = {
    "rollout", "rollout_stage", "rollout_member", "rollout_evidence", "cohort_release",
    "control_message", "fleet_epoch",
}  # fmt: skip
PUBLISH_S = 60.0


class Diary:
    """What has happened so far, over all lives of the server: one line an event."""

    def __init__(self, folder: Path) -> None:
        self._armed = folder / "armed"
        self._landed = threading.Condition()
        self._path = folder / "diary"
        self._lock = threading.RLock()
        self._killed: set[str] = set()
        self._commits = 0
        self._publications: dict[str, int] = {}
        for line in self._path.read_text().splitlines() if self._path.exists() else []:
            kind, _, rest = line.partition(" ")
            if kind == "killed":
                self._killed.add(rest)
            elif kind == "committed":
                self._commits += 1
            elif kind == "publication":
                self._publications[rest] = len(self._publications) + 1

    def around_commit(self, commit: Callable[[], None]) -> None:
        # A publication that has begun ends before the next decision: else a later directive may
        # take its place for ever, and its second moment would be a matter of luck.
        with self._landed:
            self._landed.wait_for(lambda: not self._in_the_air(), PUBLISH_S)
        # Under the lock: another thread must not end this life between commit and diary.
        with self._lock:
            if not self._armed.exists():
                commit()
                return
            number = self._commits + 1
            self._reach(f"commit {number} before")
            commit()
            self._commits = number
            self._write(f"committed {number}")
            self._reach(f"commit {number} after")

    def before_publish(self, payload: bytes) -> int | None:
        if not payload:
            return None  # clears what a stranger put there: no part of a rollout
        # By epoch and bytes: the same epoch with other bytes would be a publication of its own.
        name = f"{_epoch(payload)} {hashlib.sha256(payload).hexdigest()}"
        with self._lock:
            if not self._armed.exists() or _epoch(payload) <= int(self._armed.read_text()):
                return None
            if name not in self._publications:
                self._publications[name] = len(self._publications) + 1
                self._write(f"publication {name}")
            number = self._publications[name]
            self._reach(f"publish {number} before")
            return number

    def after_publish(self, number: int) -> None:
        with self._lock:
            self._reach(f"publish {number} after")
        with self._landed:
            self._landed.notify_all()

    def _in_the_air(self) -> bool:
        return any(
            f"publish {number} before" in self._killed
            and f"publish {number} after" not in self._killed
            for number in self._publications.values()
        )

    def _reach(self, moment: str) -> None:
        if moment not in self._killed:
            self._write(f"killed {moment}")
            os.kill(os.getpid(), signal.SIGKILL)

    def _write(self, line: str) -> None:
        # What was written survives the process; only a power cut would need more.
        with self._path.open("a") as file:
            file.write(f"{line}\n")


def install(diary: Diary) -> None:
    """Put the diary around the program's one commit and around the publisher's publications."""

    class WatchedSession(Session):
        def commit(self) -> None:
            self.flush()
            written = self.connection().info.pop("written", set())
            if written & WATCHED_TABLES:
                diary.around_commit(super().commit)
            else:
                super().commit()

    class WatchedConnection(Connection):
        def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool) -> bool:
            number = diary.before_publish(payload) if _is_directive(topic) else None
            client = self._client
            if number is None or client is None:
                return super().publish(topic, payload, qos=qos, retain=retain)
            said = client.publish(topic, payload, qos, retain)
            said.wait_for_publish(PUBLISH_S)
            if said.is_published():
                diary.after_publish(number)
            return True

    make_engine = sqlalchemy.create_engine

    def watched_engine(*args: Any, **options: Any) -> Any:
        engine = make_engine(*args, **options)
        event.listen(engine, "before_cursor_execute", _note_tables)
        event.listen(engine, "begin", lambda connection: connection.info.pop("written", None))
        return engine

    for module, name, watched in (
        (database, "Session", WatchedSession),
        (database, "create_engine", watched_engine),
        (publisher, "Connection", WatchedConnection),
    ):
        assert hasattr(module, name)
        setattr(module, name, watched)


def _note_tables(connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
    words = statement.split(None, 3)
    if words[0] in ("INSERT", "DELETE"):
        connection.info.setdefault("written", set()).add(words[2].strip('"'))
    elif words[0] == "UPDATE":
        connection.info.setdefault("written", set()).add(words[1].strip('"'))


def _epoch(payload: bytes) -> int:
    sealed = codec.decode_json(payload, Envelope, limit_bytes=limits.ENVELOPE_BYTES)
    document = base64.b64decode(sealed.payload)
    return codec.decode_json(document, Directive, limit_bytes=limits.ENVELOPE_BYTES).epoch


def _is_directive(topic: str) -> bool:
    try:
        read_directive(topic)
    except InvalidName:
        return False
    return True


def live(settings: Settings, folder: Path) -> None:
    """One life of the server."""
    logs.configure("info", str(folder / "server.log"))
    install(Diary(folder))
    serving.run(settings, lambda *_: None)


def main() -> int:
    data_dir, port, broker, folder = sys.argv[1:]
    settings = Settings(
        data_dir=Path(data_dir),
        port=int(port),
        device_port=0,
        broker=broker,
        controller_interval_ms=50,
    )
    ending = False

    def end(*_: object) -> None:
        nonlocal ending
        ending = True
        if child:
            os.kill(child, signal.SIGTERM)

    child = 0
    signal.signal(signal.SIGTERM, end)
    while not ending:
        child = os.fork()
        if not child:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            live(settings, Path(folder))
            return 0
        _, status = os.waitpid(child, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        if not killed and not ending:
            return 1  # it did not die by our hand: that is a failure of the server
    return 0


if __name__ == "__main__":
    sys.exit(main())
