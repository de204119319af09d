"""Where candidates are timed: on a bench device of the target's hardware, else on the server.

Decides that all candidates of one search are timed in one place, so that their ratios can be
compared, and that a bench device which gives no figures costs the release nothing but its word: the
server's own processor is asked then, and the table says so. Which device is chosen, and how it is
told, is decided by whoever implements :class:`Benches`.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from fleet_contract.manifest import Runtime, TensorSpec
from fleet_server.releases.laboratory.laboratory import Laboratory
from fleet_server.releases.laboratory.tasks import Race, Raced, RawTensor
from fleet_server.releases.states import NOT_THE_TARGET

RACE_MS = 2_000
"""How long one pair is timed: some hundred rows of a model that takes milliseconds."""


@dataclass(frozen=True, slots=True)
class Target:
    """For which devices something is timed.

    Attributes:
        labels, machines: what a device must have to get it; both empty for the main artifact.
        named: the labels of the bench that the pusher named for the main artifact.
        device: the bench that timed this release before, to be taken again.
    """

    labels: Mapping[str, str] = field(default_factory=dict)
    machines: Sequence[str] = ()
    named: Mapping[str, str] = field(default_factory=dict)
    device: str = ""


@dataclass(frozen=True, slots=True)
class Runner:
    """A model that is timed: its name for people, its file, and what the file must still be."""

    name: str
    path: Path
    size_bytes: int
    runtime: Runtime


@dataclass(frozen=True, slots=True)
class Heat:
    """Candidates, each to be timed in turns with the rival on single rows."""

    rival: Runner
    candidates: Sequence[Runner]
    rows: Sequence[RawTensor]
    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]

    def runtimes(self) -> Set[Runtime]:
        """Return what must be there to run all of them."""
        return {runner.runtime for runner in (self.rival, *self.candidates)}


@dataclass(frozen=True, slots=True)
class Choice:
    """A bench device, and its hardware label; without a device ``why`` says why not, if there are
    any at all."""

    device: str = ""
    hardware: str = ""
    why: str = ""


class Unavailable(Exception):
    """The bench device gave no figures; the message says why, in a few words."""


class Benches(Protocol):
    """The bench devices of the fleet."""

    def choose(self, target: Target, runtimes: Set[Runtime]) -> Choice:
        """Return a device that is there, is of the target's hardware and has these runtimes."""
        ...

    def time(self, device: str, heat: Heat, release: str) -> list[Raced | str]:
        """Return for each candidate its figures, or why it could not be run there.

        Args:
            device: the chosen one.
            heat: what is timed.
            release: for which one, for people.

        Raises:
            Closed: if the server stops meanwhile. Unavailable: if the device gives no figures.
        """
        ...


class NoBenches:
    """Stands where there are no bench devices."""

    def choose(self, _target: Target, _runtimes: Set[Runtime]) -> Choice:
        """There is none, and nothing to say about it."""
        return Choice()

    def time(self, device: str, _heat: Heat, _release: str) -> list[Raced | str]:
        """Nobody was chosen, so nobody can be asked."""
        raise Unavailable(f"{device} is not known")


@dataclass(frozen=True, slots=True)
class Place:
    """Which bench devices there are, and for whom and what they are asked."""

    benches: Benches = field(default_factory=NoBenches)
    target: Target = field(default_factory=Target)
    release: str = ""


@dataclass(frozen=True, slots=True)
class Times:
    """Figures by candidate, or why it could not be run.

    Attributes:
        where: on what they were measured, in words.
        device: the bench device, empty for the server.
        why: why it was not a bench device, if there is one.
    """

    figures: list[Raced | str]
    where: str = NOT_THE_TARGET
    device: str = ""
    why: str = ""


def time(
    heat: Heat,
    place: Place,
    laboratory: Laboratory,
    *,
    folder: Path,
    gate: str,
    on_try: Callable[[str], None],
) -> Times:
    """Time all candidates of a heat in one place.

    Args:
        heat: what is timed.
        place: where, if there is a bench device for it.
        laboratory: where else.
        folder: the only one that children of the laboratory may write to.
        gate: the step of staging that asks.
        on_try: is told what is being timed.

    Returns:
        At least one candidate has figures.

    Raises:
        Closed: if the server stops meanwhile. Refusal: what children of the laboratory end with.
    """
    choice = place.benches.choose(place.target, heat.runtimes())
    why = choice.why
    if choice.device:
        count = len(heat.candidates)
        models = "1 candidate" if count == 1 else f"{count} candidates"
        on_try(f"timing {models} on bench device {choice.device}")
        where = f"bench device {choice.device} (hardware={choice.hardware or 'not said'})"
        try:
            figures = place.benches.time(choice.device, heat, place.release)
            if any(isinstance(found, Raced) for found in figures):
                return Times(figures, where, choice.device)
            # Maybe it is the rival that does not run there.
            why = f"bench device {choice.device} timed nothing: {figures[0]}"
        except Unavailable as error:
            why = f"bench device {choice.device}: {error}"
    figures = []
    for runner in heat.candidates:
        on_try(f"timing {runner.name} against {heat.rival.name}")
        race = Race(str(runner.path), str(heat.rival.path), list(heat.rows), RACE_MS)
        figures.append(laboratory.do(race, Raced, gate=gate, folder=folder))
    return Times(figures, why=why)
