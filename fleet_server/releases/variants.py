"""Makes the further artifacts of a release: other forms of its model, for some of the devices.

Decides how a variant is made (from the same file, or from one of its own) and when it may stand
beside the others: it takes and returns the same tensors, and agrees with the main float model on
the golden rows as the main artifact must. Which device takes which is in the contract.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from fleet_contract.manifest import Requirements
from fleet_server.releases import parity, search
from fleet_server.releases.candidates import Found, Trial, drift
from fleet_server.releases.examples import Rows
from fleet_server.releases.interface import Interface
from fleet_server.releases.laboratory.laboratory import take_out
from fleet_server.releases.laboratory.tasks import Built, Examine, Examined
from fleet_server.releases.parity import Parity
from fleet_server.releases.states import Figure, Recipe, Refusal
from fleet_server.releases.timing import Target
from fleet_server.releases.uploads import WantedVariant

GATE = "variants"


@dataclass(frozen=True, slots=True)
class Made:
    """A variant that passed."""

    wanted: WantedVariant
    found: Found

    def requirements(self, numpy: str) -> Requirements:
        """Return what a device must offer for it; ``numpy`` is what the whole release asks for."""
        built = self.found.built
        return Requirements(
            opset=built.opset,
            ir_version=built.ir_version,
            operators=built.operators,
            memory_bytes=self.wanted.memory_bytes,
            labels=dict(self.wanted.labels),
            machines=list(self.wanted.machines),
            numpy=numpy,
        )


def make(
    wanted: list[WantedVariant],
    trial: Trial,
    examined: Examined,
    *,
    interface: Interface,
    file_of: Callable[[str], Path],
    folder: Path,
) -> list[Made]:
    """Return the variants in the order in which they are asked for.

    Args:
        wanted: which.
        trial: of the main model; its reference is what all are compared with.
        examined: the main model.
        interface: what the pusher says about inputs and outputs, of a variant's own file as well.
        file_of: field of the upload → the file.
        folder: where the artifacts go, with no child's access.

    Raises:
        Closed: if the server stops meanwhile.
        Refusal: of the first that cannot be made, or is another model; what children end with.
    """
    made = []
    for number, item in enumerate(wanted):
        own = file_of(item.file) if item.file else None
        found = _find(item, trial, examined, interface, own)
        made.append(Made(item, search.keep(found, folder / f"shipped-{number}.model")))
    return made


def figures(made: list[Made]) -> dict[str, Figure]:
    """Return a line a variant, for people."""
    return {
        item.wanted.name: (
            f"{item.found.built.runtime.value} {item.found.recipe.value}, "
            f"{item.found.built.size_bytes} bytes, {item.found.parity.sqnr_db:.1f} dB"
            + (f", timed on {item.found.times.where}" if item.found.times else "")
        )
        for item in made
    }


def _find(
    wanted: WantedVariant,
    trial: Trial,
    examined: Examined,
    interface: Interface,
    file: Path | None,
) -> Found:
    try:
        own = None
        if file is not None:
            trial, own = _other_file(wanted, trial, examined, interface, file)
        target = Target(wanted.labels, wanted.machines)
        trial = replace(trial, place=replace(trial.place, target=target))
        if wanted.recipe is None:
            found = search.search(trial)
        else:
            found = search.one(trial, wanted.recipe)
        if own is not None and found.recipe in {Recipe.FLOAT, Recipe.GIVEN}:
            outputs, compared, sequence = own
            found = replace(found, golden_outputs=outputs, parity=compared, sequence=sequence)
        parity.check(found.parity, trial.least_agreement)
        if found.sequence is not None:
            parity.check(found.sequence, trial.least_agreement, "steps with its own states")
    except Refusal as refusal:
        problem = refusal.problem
        raise Refusal(
            GATE,
            problem.code,
            f"Variant {wanted.name}: {problem.detail}",
            problem.advice,
            figure=problem.figure,
            bound=problem.bound,
        ) from refusal
    return found


def _other_file(
    wanted: WantedVariant, trial: Trial, examined: Examined, interface: Interface, file: Path
) -> tuple[Trial, tuple[Rows, Parity, Parity | None]]:
    """Return the trial of a variant's own file, its outputs on the golden rows and their parity,
    and that of its sequences if it has states."""
    lab, folder = trial.laboratory, trial.folder
    rewritten = folder / "rewritten.onnx"
    task = Examine(str(file), str(rewritten), interface)
    found = lab.do(task, Examined, gate=GATE, folder=folder)
    if found.changed_bytes:
        file = file.with_suffix(".rewritten")
        take_out(rewritten, file, found.changed_bytes)
    for side, ours, theirs in (
        ("inputs", examined.inputs, found.inputs),
        ("outputs", examined.outputs, found.outputs),
    ):
        if ours != theirs:
            raise Refusal(
                GATE,
                "other_signature",
                f"It has other {side} than the model: "
                f"{', '.join(f'{spec.name} {spec.dtype} {spec.shape}' for spec in theirs)[:300]}.",
                "All artifacts of a release take and return the same tensors, by the same names.",
            )
    built = Built(
        file.stat().st_size, found.opset, found.ir_version, found.operators, found.runtime
    )
    what = f"variant {wanted.name}"
    outputs = lab.run(file, trial.golden, trial.outputs, what, folder=folder)
    sequence = None
    if trial.followed is not None:
        steps = lab.run(file, trial.golden, trial.outputs, what, folder=folder, states=trial.states)
        sequence = drift(trial, trial.followed, steps)
    compared = parity.compare(trial.reference, outputs, list(trial.outputs), trial.kind)
    other = replace(trial, model=file, built=built, quantised=found.quantised)
    return other, (outputs, compared, sequence)
