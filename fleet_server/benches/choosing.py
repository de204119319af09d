"""Which bench device times a model: one that is there, of the hardware that the model is for.

Decides nothing about how it is told. Of several that will do, the one takes the job whose last was
longest ago.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from fleet_contract.manifest import Capabilities, Runtime
from fleet_server.releases.timing import Choice, Target

HARDWARE = "hardware"
"""The label that names what a device is."""


@dataclass(frozen=True, slots=True)
class Seat:
    """A bench device that is there; ``used_ms`` is when it was last given a job."""

    device: str
    labels: Mapping[str, str]
    capabilities: Capabilities
    used_ms: int


def choose(seats: Sequence[Seat], target: Target, runtimes: Set[Runtime]) -> Choice:
    """Return the device, or why none will do.

    Args:
        seats: the bench devices that are there.
        target: for which devices the model is.
        runtimes: what all models of the job need.
    """
    if not seats:
        asked = target.named or target.labels
        return Choice(why="no bench device is there" if asked else "")
    able = [seat for seat in seats if {runtime.value for runtime in runtimes} <= _runtimes(seat)]
    if not able:
        return Choice(why="no bench device that is there runs " + " and ".join(sorted(runtimes)))
    same = [seat for seat in able if seat.device == target.device]
    fitting = same or [seat for seat in able if _fits(seat, target)]
    if not fitting:
        return Choice(why=f"no bench device that is there has {_words(target)}")
    kinds = {seat.labels.get(HARDWARE, "") for seat in fitting}
    is_meant = bool(same or target.labels or target.machines or target.named)
    if not is_meant and kinds == {""}:
        return Choice(why=f"the bench devices have no {HARDWARE} label")
    if not is_meant and len(kinds) > 1:
        names = ", ".join(sorted(kind or "none" for kind in kinds))
        return Choice(why=f"the bench devices are of several kinds ({names}), none was named")
    found = min(fitting, key=lambda seat: (seat.used_ms, seat.device))
    return Choice(found.device, found.labels.get(HARDWARE, ""))


def _runtimes(seat: Seat) -> Set[str]:
    return seat.capabilities.runtimes.keys()


def _fits(seat: Seat, target: Target) -> bool:
    wanted = target.labels or ({} if target.machines else target.named)
    return all(seat.labels.get(key) == value for key, value in wanted.items()) and (
        not target.machines or seat.capabilities.machine in target.machines
    )


def _words(target: Target) -> str:
    labels = target.labels or target.named
    words = [f"{key}={value}" for key, value in sorted(labels.items())]
    if target.machines:
        words.append("one of the machines " + ", ".join(target.machines))
    return " and ".join(words)
