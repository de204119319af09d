"""The slot: one release answers predictions, one stands by warm, exchanging them is one assignment.

Decides how a swap happens under load: the new session was built and warmed beside the old one, the
reference is exchanged, calls in flight end on the session they began on, the old one stays warm.
No lock is held while a model runs. Which release belongs into the slot is decided in the core.
"""

import threading
from typing import Generic, TypeVar

from device_agent.errors import ModelDisabled, NoModel
from device_agent.inference import process_memory
from device_agent.inference.session import ModelSession
from device_agent.inference.tensors import Tensors

WARM_UP_RUNS = 3
"""The first run allocates the arena, the second and third show that it is enough."""


BuiltT = TypeVar("BuiltT")
"""What the slot holds: a built release. The slot looks at nothing of it."""


def warm_up(session: ModelSession, inputs: Tensors) -> None:
    """Run the session a few times before anybody waits for it.

    Raises:
        InferenceFailed: if it fails on these inputs.
    """
    for _ in range(WARM_UP_RUNS):
        session.run(inputs)


class Seat(Generic[BuiltT]):
    """A built release in the slot, and how many calls are running on it."""

    __slots__ = ("built", "calls")

    def __init__(self, built: BuiltT) -> None:
        self.built = built
        self.calls = 0


class Slot(Generic[BuiltT]):
    """Holds the active release of one model and its standby. Thread-safe."""

    def __init__(self) -> None:
        # Held for a few instructions, never while a model runs or is destroyed.
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._active: Seat[BuiltT] | None = None
        self._standby: Seat[BuiltT] | None = None
        self._disabled = False

    @property
    def active(self) -> BuiltT | None:
        """What answers predictions, or would if it were not disabled."""
        seat = self._active
        return None if seat is None else seat.built

    @property
    def standby(self) -> BuiltT | None:
        seat = self._standby
        return None if seat is None else seat.built

    @property
    def disabled(self) -> bool:
        return self._disabled

    def enter(self) -> Seat[BuiltT]:
        """Take the active release for one call; give it back with :meth:`leave`.

        Raises:
            NoModel: nothing is active.
            ModelDisabled: the fleet has taken the model away.
        """
        with self._lock:
            seat = self._active
            if self._disabled:
                raise ModelDisabled("the fleet has disabled this model")
            if seat is None:
                raise NoModel("no release of this model is active yet")
            seat.calls += 1
            return seat

    def leave(self, seat: Seat[BuiltT]) -> None:
        """End a call that :meth:`enter` began."""
        with self._lock:
            seat.calls -= 1
            if not seat.calls and seat is not self._active:
                self._idle.notify_all()

    def activate(self, built: BuiltT, *, drain_s: float = 5.0) -> bool:
        """Let this release answer from now on, and keep the one before as the standby.

        The standby before that is released. Returns whether the calls in flight on the old release
        ended within ``drain_s`` seconds; those that did not still end on it, later.
        """
        with self._lock:
            self._disabled = False
            if self._active is not None and self._active.built is built:
                return True
            gone, old = self._standby, self._active
            self._active, self._standby = Seat(built), old
        drained = self._drain(old, drain_s)
        if gone is not None:
            self._drain(gone, drain_s)
            del gone
            process_memory.give_back()
        return drained

    def revert_to_standby(self, *, drain_s: float = 5.0) -> BuiltT | None:
        """Exchange active and standby without reading a model; None if there is no standby."""
        with self._lock:
            if self._standby is None:
                return None
            self._active, self._standby = self._standby, self._active
            self._disabled = False
            now, old = self._active, self._standby
        self._drain(old, drain_s)
        return now.built

    def seat_standby(self, built: BuiltT) -> None:
        """Put a release beside the active one, as a restart finds it on disk."""
        with self._lock:
            gone, self._standby = self._standby, Seat(built)
        del gone

    def disable(self) -> None:
        """Answer every call with ModelDisabled; both sessions stay as they are."""
        with self._lock:
            self._disabled = True

    def drop_standby(self, *, drain_s: float = 5.0) -> None:
        """Release the standby and give its memory back to the system."""
        with self._lock:
            gone, self._standby = self._standby, None
        if gone is None:
            return
        self._drain(gone, drain_s)
        del gone
        process_memory.give_back()

    def _drain(self, seat: Seat[BuiltT] | None, seconds: float) -> bool:
        if seat is None:
            return True
        with self._idle:
            # A seat that came back into service by another thread is nobody's to wait for.
            return self._idle.wait_for(
                lambda: not seat.calls or seat is self._active, timeout=seconds
            )
