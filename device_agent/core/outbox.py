"""The outbox: telemetry windows that the server has not committed yet.

Decides which windows go into which message, when one that was not acknowledged is sent again, and
what is given up when the outbox is full: first the sketches of the oldest windows, whose counters
stay, and only then whole windows. Both losses are counted and reported. Where the outbox is stored
is the shell's business.
"""

from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from fleet_contract import codec, limits
from fleet_contract.errors import Reason, Refused
from fleet_contract.messages.presence import Session
from fleet_contract.messages.report import Ack, Report, Role, Window

LIMIT_BYTES = 2 * 1024 * 1024
"""An hour of windows at one a minute, each with 400 features at 85 bytes."""
LIMIT_WINDOWS = 4096
"""Without sketches a window takes about 150 bytes."""

FIRST_REPEAT_MS = 5_000
LONGEST_REPEAT_MS = 60_000

_FRAME_BYTES = 256
"""What a report takes beside its windows."""


class WindowKey(NamedTuple):
    """What tells one window of a device from another."""

    model: str
    session: str
    release: str
    role: Role
    start_ms: int


class _Losses(msgspec.Struct):
    """What was given up of one boot session; cumulative, as reported."""

    sketches: int = 0
    windows: int = 0


class _Pending(msgspec.Struct):
    """A window that waits, as it will be sent. ``due_ms`` is when it may be sent (again)."""

    model: str
    session: Session
    window: Window
    size_bytes: int
    sends: int = 0
    due_ms: int = 0

    @property
    def has_sketches(self) -> bool:
        return self.window.inputs is not None or self.window.outputs is not None


class _Stored(msgspec.Struct):
    pending: list[_Pending]
    losses: dict[str, _Losses]


class Outbox:
    """Windows waiting to be acknowledged, oldest first. Not thread-safe."""

    def __init__(
        self, *, limit_bytes: int = LIMIT_BYTES, limit_windows: int = LIMIT_WINDOWS
    ) -> None:
        self._limit_bytes = limit_bytes
        self._limit_windows = limit_windows
        self._pending: dict[WindowKey, _Pending] = {}
        self._losses: dict[str, _Losses] = {}
        self._size_bytes = 0

    def __len__(self) -> int:
        return len(self._pending)

    @property
    def size_bytes(self) -> int:
        """What the waiting windows take on the wire."""
        return self._size_bytes

    @property
    def next_due_ms(self) -> int | None:
        """When the next window may be sent; None if none waits."""
        return min((item.due_ms for item in self._pending.values()), default=None)

    @property
    def owed(self) -> bool:
        """Whether the server has had time to acknowledge a window and did not, or has none yet."""
        return any(item.sends != 1 for item in self._pending.values())

    def add(self, model: str, session: str, window: Window) -> None:
        """Keep a window until it is acknowledged; a later state of it takes the earlier's place."""
        key = WindowKey(model, session, window.release, window.role, window.start_ms)
        known = self._pending.get(key)
        if known is not None and known.window.sequence >= window.sequence:
            return
        size = len(codec.encode_msgpack(window))
        if size > limits.REPORT_BYTES - _FRAME_BYTES and (window.inputs or window.outputs):
            window = replace(window, inputs=None, outputs=None)
            size = len(codec.encode_msgpack(window))
            self._lost(session).sketches += 1
        if known is not None:
            self._size_bytes -= known.size_bytes
        self._pending[key] = _Pending(model, session, window, size)
        self._size_bytes += size
        self._shrink()

    def acknowledge(self, ack: Ack) -> int:
        """Forget what the server has committed; return how many windows that were.

        A window that changed after the acknowledged state was sent is kept.
        """
        gone = 0
        for item in ack.windows:
            key = WindowKey(item.model, ack.session, item.release, item.role, item.start_ms)
            pending = self._pending.get(key)
            if pending is not None and item.sequence >= pending.window.sequence:
                del self._pending[key]
                self._size_bytes -= pending.size_bytes
                gone += 1
        return gone

    def messages(self, now_ms: int | None = None) -> list[tuple[str, bytes]]:
        """Return reports to send now, as (model, payload), oldest windows first.

        Args:
            now_ms: only what is due at this time, which is then not due again for a while, longer
                with each time; None for everything, at once.
        """
        groups: dict[tuple[str, str], list[_Pending]] = {}
        for pending in self._pending.values():
            if now_ms is None or pending.due_ms <= now_ms:
                groups.setdefault((pending.model, pending.session), []).append(pending)
                if now_ms is not None:
                    delay = min(LONGEST_REPEAT_MS, FIRST_REPEAT_MS << min(pending.sends, 8))
                    pending.due_ms = now_ms + delay
                    pending.sends += 1
        return [
            (model, self._report(session, part))
            for (model, session), group in groups.items()
            for part in _parts(group)
        ]

    def encode(self) -> bytes:
        """Return the outbox as it is stored."""
        sessions = {key.session for key in self._pending}
        losses = {name: lost for name, lost in self._losses.items() if name in sessions}
        return codec.encode_msgpack(_Stored(list(self._pending.values()), losses))

    def restore(self, data: bytes) -> None:
        """Take in what :meth:`encode` returned in an earlier boot session; all of it is due.

        Raises:
            Refused: ``malformed`` or ``too_large`` if it is not that.
        """
        # The names of the fields and the counters beside a window take less than it does.
        limit = 4 * self._limit_bytes + 512 * self._limit_windows
        stored = codec.decode_msgpack(data, _Stored, limit_bytes=limit)
        if min((item.size_bytes for item in stored.pending), default=0) < 0:
            raise Refused(Reason.MALFORMED, "a window of negative size")
        for session, losses in stored.losses.items():
            known = self._lost(session)
            known.sketches += losses.sketches
            known.windows += losses.windows
        for item in stored.pending:
            self.add(item.model, item.session, item.window)

    def _report(self, session: str, part: list[_Pending]) -> bytes:
        losses = self._losses.get(session, _Losses())
        return codec.encode_msgpack(
            Report(session, [item.window for item in part], losses.sketches, losses.windows)
        )

    def _shrink(self) -> None:
        if self._size_bytes > self._limit_bytes:
            for key, item in list(self._pending.items()):
                if self._size_bytes <= self._limit_bytes:
                    break
                if item.has_sketches:
                    self._drop_sketches(key, item)
        while self._pending and (
            self._size_bytes > self._limit_bytes or len(self._pending) > self._limit_windows
        ):
            key = next(iter(self._pending))
            self._size_bytes -= self._pending.pop(key).size_bytes
            self._lost(key.session).windows += 1

    def _drop_sketches(self, key: WindowKey, item: _Pending) -> None:
        # The sequence stays: an acknowledgement of the full state is as good for this one.
        window = replace(item.window, inputs=None, outputs=None)
        size = len(codec.encode_msgpack(window))
        self._size_bytes += size - item.size_bytes
        self._pending[key] = _Pending(
            item.model, item.session, window, size, item.sends, item.due_ms
        )
        self._lost(key.session).sketches += 1

    def _lost(self, session: str) -> _Losses:
        return self._losses.setdefault(session, _Losses())


def _parts(group: list[_Pending]) -> list[list[_Pending]]:
    """Return the windows in as few lists as fit into one message each."""
    parts: list[list[_Pending]] = []
    room_bytes = 0
    for item in group:
        if not parts or len(parts[-1]) == limits.WINDOWS_PER_REPORT or item.size_bytes > room_bytes:
            parts.append([])
            room_bytes = limits.REPORT_BYTES - _FRAME_BYTES
        parts[-1].append(item)
        room_bytes -= item.size_bytes
    return parts
