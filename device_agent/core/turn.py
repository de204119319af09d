"""One turn of the core: the state as it changes, and the effects as they pile up.

Lives for one call of ``step`` only. Decides that a changed record is persisted before anything
that follows from it, by putting that effect in front of all others.
"""

from msgspec.structs import replace

from device_agent.core.effects import Effect, Persist
from device_agent.core.state import Live, ModelState, Record, State
from device_agent.core.transitions import Trigger, advance
from fleet_contract.errors import Reason


class Turn:
    """The working copy of a state; ``now_ms`` is the device's time, since 1970."""

    def __init__(self, state: State, now_ms: int) -> None:
        self._before = state.record
        self.record: Record = state.record
        self.live: Live = state.live
        self.now_ms = now_ms
        self.effects: list[Effect] = []

    @property
    def trusted_ms(self) -> int:
        """The device's time, but never before the newest signed issue time."""
        return max(self.now_ms, self.record.time_floor_ms)

    def model(self, name: str) -> ModelState:
        """Return the state of a model, fresh if the device has not met it."""
        return self.record.models.get(name) or ModelState(model=name)

    def put(self, model: ModelState) -> ModelState:
        """Take over the changed state of a model."""
        self.record = replace(self.record, models={**self.record.models, model.model: model})
        return model

    def move(
        self,
        model: ModelState,
        trigger: Trigger,
        *,
        due_ms: int | None = None,
        reason: Reason | None = None,
        detail: str = "",
    ) -> ModelState:
        """Pull a trigger of the transition table and take the result over."""
        return self.put(
            replace(
                model,
                phase=advance(model.phase, trigger),
                due_ms=due_ms,
                reason=reason,
                detail=detail[:300],
                changed_ms=self.now_ms,
            )
        )

    def do(self, *effects: Effect) -> None:
        """Ask the shell for something."""
        self.effects.extend(effects)

    def end(self) -> tuple[State, list[Effect]]:
        """Return the new state, and the effects in the order in which they must be performed."""
        first: list[Effect] = []
        if self.record is not self._before and self.record != self._before:
            first = [Persist(self.record)]
        return State(self.record, self.live), first + self.effects
