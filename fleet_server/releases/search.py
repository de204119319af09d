"""Searches for the form in which a model ships: makes candidates, measures each, picks one.

Decides which candidates are tried and which of them wins: the fastest that passes parity, is within
the size budget, smaller than the float model and not slower; of several as fast, the smallest. A
model with states must pass parity twice: step by step from given states, and over sequences in
which it gets its own states back. How one is made is in :mod:`fleet_server.releases.quantisation`.
A small model gets the default without a race: its size and time matter to no device.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

from fleet_contract.manifest import Runtime, TensorSpec
from fleet_server.releases import limits, parity, quantisation
from fleet_server.releases.examples import Rows
from fleet_server.releases.laboratory.laboratory import Laboratory, head
from fleet_server.releases.laboratory.tasks import (
    Build,
    Built,
    Race,
    Raced,
    RawTensor,
    Survey,
    Surveyed,
)
from fleet_server.releases.parity import Parity
from fleet_server.releases.states import Candidate, OutputKind, Recipe, Refusal

_SENSITIVITY_ROWS = 64
_RACE_MS = 2_000
_HALF = 0.5
"""Share of the float model's size above which single layers are worth the time that they take."""
_WORTH_IT = 0.9
"""Share of the float model's size above which a candidate is not worth shipping, nor ends the
search."""

_NOISE = 1.03
"""Two races of one model against itself differ by up to 3%: no more is called slower."""
_ONNX = (
    *(Recipe.DYNAMIC, Recipe.FLOAT16, Recipe.STATIC_ALL),
    *(Recipe.WEIGHTS8, Recipe.WEIGHTS16),
)
_TFLITE = (Recipe.DYNAMIC, Recipe.FLOAT16, Recipe.WEIGHTS8)
"""What is tried after static int8."""
_INT8 = {
    *(Recipe.STATIC, Recipe.STATIC_7BIT, Recipe.STATIC_ALL),
    *(Recipe.DYNAMIC, Recipe.DYNAMIC_MATMUL, Recipe.MIXED, Recipe.MIXED_LAYERS),
}
"""Recipes that compute in int8, and may be faster than float."""
_WORDS = {
    Recipe.STATIC: "static int8",
    Recipe.STATIC_7BIT: "static int8 with weights of 7 bits",
    Recipe.STATIC_ALL: "static int8, all operators",
    Recipe.DYNAMIC: "dynamic int8",
    Recipe.DYNAMIC_MATMUL: "dynamic int8, matrix products",
    Recipe.FLOAT16: "16-bit float",
    Recipe.WEIGHTS8: "weights stored in int8",
    Recipe.WEIGHTS16: "weights stored in 16-bit float",
    Recipe.MIXED: "static int8, some operators in float",
    Recipe.MIXED_LAYERS: "static int8, some layers in float",
}


@dataclass(frozen=True, slots=True)
class Trial:
    """A float model on the bench. ``folder`` is the only one that children write to.

    Attributes:
        built: what the float model demands of a runtime.
        reference: the float model's outputs on the golden rows.
        states: input → output that is its value at the next step.
        followed: the float model's outputs over the golden rows as sequences, if it has states.
        size_budget_bytes: nothing larger ships.
        on_try: is told what is tried, in words.
        quantised: it was pushed with quantised weights; then nothing is tried.
    """

    laboratory: Laboratory
    model: Path
    built: Built
    folder: Path
    calibration: list[RawTensor]
    golden: list[RawTensor]
    reference: Rows
    outputs: Sequence[TensorSpec]
    kind: OutputKind
    least_agreement: float
    monotonic_ms: Callable[[], int]
    states: Mapping[str, str] = field(default_factory=dict)
    followed: Rows | None = None
    size_budget_bytes: int | None = None
    on_try: Callable[[str], None] = lambda _: None
    quantised: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """What ships. ``artifact`` is where it lies: where children may write, so copy it before the
    next one runs. ``reason`` says why it is the float model, where it is.
    """

    recipe: Recipe
    built: Built
    artifact: Path
    golden_outputs: Rows
    parity: Parity
    candidates: list[Candidate]
    sequence: Parity | None = None
    reason: str = ""


@dataclass(slots=True)
class _Entry:
    """A candidate that was made. ``refusal`` is that of the parity check or of the budget."""

    recipe: Recipe
    path: Path
    built: Built
    parity: Parity
    golden_outputs: Rows
    refusal: Refusal | None = None
    sequence: Parity | None = None
    note: str = ""
    raced: Raced | None = None


@dataclass(slots=True)
class _Table:
    entries: list[_Entry] = field(default_factory=list)
    failures: list[Candidate] = field(default_factory=list)
    last: Refusal | None = None
    planned: int = 1


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a file's quantiser can make. ``spare`` follows where static int8 fails."""

    spare: Recipe
    more: tuple[Recipe, ...]
    mixes: bool


def _plan(built: Built) -> _Plan:
    if built.runtime is Runtime.LITERT:
        return _Plan(Recipe.DYNAMIC, _TFLITE, mixes=False)
    more: tuple[Recipe, ...] = _ONNX
    if "MatMul" in built.operators:
        more += (Recipe.DYNAMIC_MATMUL,)
    # The processor may be one that overflows at full range.
    return _Plan(Recipe.STATIC_7BIT, more, mixes=True)


def search(trial: Trial) -> Found:
    """Find the form in which a model ships.

    Raises:
        Closed: if the server stops meanwhile.
        Refusal: ``parity_failed`` if a small model has no candidate that passes,
            ``over_size_budget`` if none is small enough; what children of the laboratory end with.
    """
    if trial.quantised:
        return _as_it_is(trial, _Table(planned=0))
    plan, small = _plan(trial.built), trial.built.size_bytes < limits.SEARCH_BYTES
    table = _Table(planned=1 if small else 1 + len(plan.more))
    static = _try(trial, table, Recipe.STATIC)
    if static is None or (static.refusal and static.refusal.problem.code == "parity_failed"):
        table.planned += plan.spare not in plan.more
        _try(trial, table, plan.spare)
    if small:
        for entry in table.entries:
            if entry.refusal is None:
                return _found(table, entry)
        if static is not None and static.refusal is not None:
            raise static.refusal
        return _as_it_is(trial, table)
    end_ms = trial.monotonic_ms() + limits.SEARCH_MS
    tried = {entry.recipe for entry in table.entries} | {item.recipe for item in table.failures}
    for recipe in plan.more:
        if trial.monotonic_ms() < end_ms and recipe not in tried:
            _try(trial, table, recipe)
    if plan.mixes and any(entry.recipe in _INT8 for entry in table.entries):
        if not _saves(trial, table, _WORTH_IT):
            _mix(trial, table, end_ms)
        if not _saves(trial, table, _HALF):
            _mix_layers(trial, table, end_ms)
    budget = trial.size_budget_bytes
    no_float = budget is not None and trial.built.size_bytes > budget
    # What saves less is chosen by the noise of the race, and no device gains by it.
    most_bytes = trial.built.size_bytes - 1 if no_float else trial.built.size_bytes * _WORTH_IT
    for entry in table.entries:
        if entry.refusal is None and entry.built.size_bytes <= most_bytes:
            trial.on_try(f"timing {_WORDS[entry.recipe]} against float")
            race = Race(str(entry.path), str(trial.model), trial.golden, _RACE_MS)
            entry.raced = trial.laboratory.do(race, Raced, gate="quantisation", folder=trial.folder)
    winner = _fastest(table.entries, slower=no_float)
    return _as_it_is(trial, table) if winner is None else _found(table, winner)


def _saves(trial: Trial, table: _Table, share: float) -> bool:
    """Whether an int8 candidate passes and has at most this share of the float model's size."""
    return any(
        entry.recipe in _INT8
        and entry.refusal is None
        and entry.built.size_bytes <= trial.built.size_bytes * share
        for entry in table.entries
    )


def one(trial: Trial, recipe: Recipe) -> Found:
    """Make one candidate, whatever its size and speed; the caller judges its parity.

    Raises:
        Closed: if the server stops meanwhile.
        Refusal: if it cannot be made or run.
    """
    table = _Table()
    if recipe in {Recipe.FLOAT, Recipe.GIVEN}:
        return _as_it_is(trial, table)
    entry = _try(trial, table, recipe)
    if entry is None:
        raise cast(Refusal, table.last)
    return _found(table, entry)


def keep(found: Found, path: Path) -> Found:
    """Copy what was found to where no child can write, and no later search over it."""
    # Not by way of this process' memory: it may be half a gigabyte.
    shutil.copyfile(found.artifact, path)
    return replace(found, artifact=path)


def _fastest(entries: list[_Entry], *, slower: bool) -> _Entry | None:
    """Return the best of those that were timed; ``slower`` ones if float is no choice."""
    able = [
        (entry.raced.model_us / entry.raced.rival_us, entry)
        for entry in entries
        if entry.raced is not None
    ]
    able = [(ratio, entry) for ratio, entry in able if slower or ratio <= _NOISE]
    if not able:
        return None
    fastest = min(ratio for ratio, _ in able)
    alike = [entry for ratio, entry in able if ratio <= fastest * _NOISE]
    return min(alike, key=lambda entry: entry.built.size_bytes)


def _try(
    trial: Trial,
    table: _Table,
    recipe: Recipe,
    *,
    operators: Sequence[str] = (),
    layers: Sequence[str] = (),
    note: str = "",
) -> _Entry | None:
    number = len(table.entries) + len(table.failures)
    table.planned = max(table.planned, number + 1)
    trial.on_try(f"{number + 1} of {table.planned}: {_WORDS[recipe]}")
    path = trial.folder / f"candidate-{number}.onnx"
    name = "int8 model" if recipe is not Recipe.FLOAT16 else "float16 model"
    lab, outputs = trial.laboratory, trial.outputs
    task = Build(
        str(trial.model), recipe, trial.calibration, str(path), list(operators), list(layers)
    )
    followed = None
    try:
        built = lab.do(task, Built, gate="quantisation", folder=trial.folder)
        given = lab.run(path, trial.golden, outputs, name, folder=trial.folder)
        if trial.followed is not None:
            followed = lab.run(
                path, trial.golden, outputs, name, folder=trial.folder, states=trial.states
            )
    except Refusal as refusal:
        # A model that passed its examination; this candidate of it did not work out.
        table.failures.append(Candidate(recipe, False, note=refusal.problem.detail[:300]))
        table.last = refusal
        return None
    entry = _Entry(
        recipe,
        path,
        built,
        parity.compare(trial.reference, given, list(outputs), trial.kind),
        given,
    )
    entry.note = note
    if trial.followed is not None and followed is not None:
        entry.sequence = _drift(trial, trial.followed, followed)
    try:
        _check_budget(trial, built.size_bytes, "The candidate")
        parity.check(entry.parity, trial.least_agreement)
        if entry.sequence is not None:
            parity.check(entry.sequence, trial.least_agreement, "steps with its own states")
    except Refusal as refusal:
        entry.refusal = refusal
        if refusal.problem.code == "over_size_budget" or entry.sequence is not None:
            entry.note = "; ".join(filter(None, [note, refusal.problem.detail]))[:300]
    table.entries.append(entry)
    return entry


def _drift(trial: Trial, reference: Rows, candidate: Rows) -> Parity:
    """Compare what comes of sequences: the outputs, and the states only where there is no other."""
    plain = [spec for spec in trial.outputs if spec.name not in trial.states.values()]
    outputs = plain or list(trial.outputs)
    scores = outputs[0] is trial.outputs[0]
    return parity.compare(
        reference, candidate, outputs, trial.kind if scores else OutputKind.VALUES
    )


def _check_budget(trial: Trial, size_bytes: int, what: str) -> None:
    bound = trial.size_budget_bytes
    if bound is not None and size_bytes > bound:
        raise Refusal(
            "quantisation",
            "over_size_budget",
            f"{what} has {size_bytes} bytes; the budget is {bound}.",
            "Raise the budget, lower the agreement that is asked for, or train a smaller model.",
            figure=size_bytes,
            bound=bound,
        )


def _mix(trial: Trial, table: _Table, end_ms: int) -> None:
    """Quantise all operators, then return the one that hurts most to float, and so on."""
    wanted = sorted(set(trial.built.operators) & set(quantisation.ALL_OPERATORS))
    hurt = _sensitivity(trial, Recipe.MIXED, wanted, end_ms)
    for count in range(1, len(hurt)):
        if trial.monotonic_ms() > end_ms:
            return
        kept = [operator for _, operator in hurt[count:]]
        entry = _try(trial, table, Recipe.MIXED, operators=kept, note=_in_float(hurt[:count]))
        if entry is not None and entry.refusal is None:
            return


def _mix_layers(trial: Trial, table: _Table, end_ms: int) -> None:
    """Find how many of the layers that hurt most must be in float; the others are in int8."""
    lab, folder = trial.laboratory, trial.folder
    try:
        task = Survey(str(trial.model), str(folder))
        found = lab.do(task, Surveyed, gate="quantisation", folder=folder).layers
    except Refusal:
        return  # what the tools cannot prepare has no int8 form
    now_ms = trial.monotonic_ms()
    hurt = _sensitivity(trial, Recipe.MIXED_LAYERS, found, min(end_ms, now_ms + limits.LAYERS_MS))
    # By halves: with more layers in float it gets better, as a rule.
    fails, passes = 0, len(hurt)
    while passes - fails > 1 and trial.monotonic_ms() < end_ms:
        count = (fails + passes) // 2
        kept = [layer for _, layer in hurt[count:]]
        entry = _try(trial, table, Recipe.MIXED_LAYERS, layers=kept, note=_in_float(hurt[:count]))
        if entry is not None and entry.refusal is None:
            passes = count
        else:
            fails = count


def _sensitivity(
    trial: Trial, recipe: Recipe, parts: Sequence[str], end_ms: int
) -> list[tuple[float, str]]:
    """Return the parts by how much each alone in int8 hurts: signal to noise in dB, worst first.

    Those that have no quantised form here, and those that time did not suffice for, are left out.
    """
    rows, path = head(trial.calibration, _SENSITIVITY_ROWS), trial.folder / "sensitivity.onnx"
    lab, outputs = trial.laboratory, trial.outputs
    reference = lab.run(trial.model, rows, outputs, "float model", folder=trial.folder)
    hurt: list[tuple[float, str]] = []
    for number, part in enumerate(parts):
        if trial.monotonic_ms() > end_ms:
            break
        trial.on_try(f"what {part[:60]} costs in int8, {number + 1} of {len(parts)}")
        layers, operators = ([part], []) if recipe is Recipe.MIXED_LAYERS else ([], [part])
        task = Build(str(trial.model), recipe, rows, str(path), operators, layers)
        try:
            lab.do(task, Built, gate="quantisation", folder=trial.folder)
            alone = lab.run(path, rows, outputs, "int8 model", folder=trial.folder)
        except Refusal:
            continue
        found = parity.compare(reference, alone, list(outputs), trial.kind)
        hurt.append((found.sqnr_db, part))
    return sorted(hurt)


def _in_float(parts: Sequence[tuple[float, str]]) -> str:
    named = ", ".join(f"{part[-60:]} ({sqnr_db:.0f} dB)" for sqnr_db, part in parts)
    return f"in float: {named}"[:300]


def _as_it_is(trial: Trial, table: _Table) -> Found:
    _check_budget(trial, trial.built.size_bytes, "No candidate is small enough, the float model")
    recipe = Recipe.GIVEN if trial.quantised else Recipe.FLOAT
    if trial.quantised:
        reason = "its weights were quantised before it was pushed"
    elif table.entries:
        reason = "no candidate passes parity and is smaller and not slower"
    else:
        reason = table.last.problem.detail if table.last is not None else ""
    exact = parity.compare(trial.reference, trial.reference, list(trial.outputs), trial.kind)
    return Found(
        recipe,
        trial.built,
        trial.model,
        trial.reference,
        exact,
        _rows(table, None),
        reason=reason,
    )


def _found(table: _Table, entry: _Entry) -> Found:
    if entry.path.is_symlink() or entry.path.stat().st_size != entry.built.size_bytes:
        raise Refusal(
            "quantisation",
            "child_crashed",
            "The candidate is not the file that was made.",
            "Push the version again; look into the server's log if it comes back.",
        )
    return Found(
        entry.recipe,
        entry.built,
        entry.path,
        entry.golden_outputs,
        entry.parity,
        _rows(table, entry),
        entry.sequence,
    )


def _rows(table: _Table, chosen: _Entry | None) -> list[Candidate]:
    made = [
        Candidate(
            entry.recipe,
            entry.refusal is None,
            chosen=entry is chosen,
            size_bytes=entry.built.size_bytes,
            agreement=entry.parity.agreement,
            sqnr_db=round(entry.parity.sqnr_db, 2),
            largest_difference=round(entry.parity.largest_difference, 6),
            sequence_agreement=None if entry.sequence is None else entry.sequence.agreement,
            sequence_sqnr_db=None if entry.sequence is None else round(entry.sequence.sqnr_db, 2),
            latency_us=None if entry.raced is None else round(entry.raced.model_us, 1),
            float_latency_us=None if entry.raced is None else round(entry.raced.rival_us, 1),
            note=entry.note,
        )
        for entry in table.entries
    ]
    return [*made, *table.failures]
