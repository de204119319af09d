"""The local guard: an active release that mostly fails is taken back without asking anybody.

Decides when the error rate is too high: more than half of at least 20 calls within a minute. Only
a release that a deployment brought is watched; what the device fell back to is not, or two bad
ones would take turns. What follows from it is decided in the core.
"""

from collections import deque

from device_agent.core.events import GuardTripped
from device_agent.core.state import ModelState
from device_agent.inference.recorder import Figures
from fleet_contract.errors import Reason
from fleet_contract.messages.progress import Phase

SPAN_MS = 60_000
LEAST_CALLS = 20
HIGHEST_SHARE = 0.5
_WATCHED = {Phase.SOAKING, Phase.SUCCEEDED}


class Guard:
    """Watches one model; ``look`` is called every second or so."""

    def __init__(self) -> None:
        self._seen: deque[tuple[int, Figures]] = deque()
        self._tripped = ""

    def look(self, model: ModelState, figures: Figures | None, now_ms: int) -> GuardTripped | None:
        """Return the event if the active release failed too often of late.

        Args:
            model: the core's view.
            figures: cumulative counters of the active release.
            now_ms: the device's time.
        """
        if figures is None or figures.release != model.active_digest:
            return None
        seen = self._seen
        if seen and not _follows(seen[-1], now_ms, figures):
            seen.clear()
        if not seen:
            self._tripped = ""
            seen.append((now_ms, Figures(figures.release, 0, 0)))
        seen.append((now_ms, figures))
        while now_ms - seen[0][0] > SPAN_MS:
            seen.popleft()
        calls = figures.predictions - seen[0][1].predictions
        errors = figures.errors - seen[0][1].errors
        watched = model.phase in _WATCHED and model.target == figures.release
        if not watched or self._tripped == figures.release or model.standby is None:
            return None
        if calls < LEAST_CALLS or errors <= calls * HIGHEST_SHARE:
            return None
        self._tripped = figures.release
        return GuardTripped(
            model.model,
            figures.release,
            Reason.LOCAL_ERROR_RATE,
            f"{errors} of the last {calls} predictions failed",
        )


def _follows(last: tuple[int, Figures], now_ms: int, figures: Figures) -> bool:
    # Another release, or the same one active anew, counts from zero.
    before_ms, before = last
    return (
        before.release == figures.release
        and before.predictions <= figures.predictions
        and before_ms <= now_ms
    )
