"""Searches for the form in which a model ships: makes candidates, measures each, picks one.

Decides which candidates are tried and which of them wins: the fastest that passes parity, is
smaller than the float model and not slower. How one is made is in
:mod:`fleet_server.releases.quantisation`. A small model gets the default without a race: its size
and time matter to no device.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from fleet_contract.manifest import Runtime, TensorSpec
from fleet_server.releases import limits, parity, quantisation
from fleet_server.releases.examples import Rows
from fleet_server.releases.laboratory.laboratory import Laboratory, head
from fleet_server.releases.laboratory.tasks import Build, Built, Race, Raced, RawTensor
from fleet_server.releases.parity import Parity
from fleet_server.releases.states import Candidate, OutputKind, Recipe, Refusal

_SENSITIVITY_ROWS = 64
_RACE_MS = 2_000
_WORTH_IT = 0.9
"""Share of the float model's size above which an int8 candidate does not end the search."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A float model on the bench. ``folder`` is the only one that children write to.

    Attributes:
        built: what the float model demands of a runtime.
        reference: the float model's outputs on the golden rows.
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
    quantised: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """What ships. ``reason`` says why it is the float model, where it is."""

    recipe: Recipe
    built: Built
    artifact: bytes
    golden_outputs: Rows
    parity: Parity
    candidates: list[Candidate]
    reason: str = ""


@dataclass(slots=True)
class _Entry:
    """A candidate that was made. ``refusal`` is that of the parity check."""

    recipe: Recipe
    path: Path
    built: Built
    parity: Parity
    golden_outputs: Rows
    refusal: Refusal | None
    note: str = ""
    raced: Raced | None = None


@dataclass(slots=True)
class _Table:
    entries: list[_Entry] = field(default_factory=list)
    failures: list[Candidate] = field(default_factory=list)
    last: Refusal | None = None


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a file's quantiser can make. ``spare`` follows where static int8 fails."""

    spare: Recipe
    more: tuple[Recipe, ...]
    mixes: bool


def _plan(built: Built) -> _Plan:
    if built.runtime is Runtime.LITERT:
        more: tuple[Recipe, ...] = (Recipe.DYNAMIC, Recipe.FLOAT16, Recipe.WEIGHTS)
        return _Plan(Recipe.DYNAMIC, more, mixes=False)
    more = (Recipe.DYNAMIC, Recipe.FLOAT16, Recipe.STATIC_ALL)
    if "MatMul" in built.operators:
        more += (Recipe.DYNAMIC_MATMUL,)
    # The processor may be one that overflows at full range.
    return _Plan(Recipe.STATIC_7BIT, more, mixes=True)


def search(trial: Trial) -> Found:
    """Find the form in which a model ships.

    Raises:
        Closed: if the server stops meanwhile.
        Refusal: ``parity_failed`` if a small model has no candidate that passes; what children of
            the laboratory end with.
    """
    table = _Table()
    if trial.quantised:
        return _as_it_is(trial, table)
    plan = _plan(trial.built)
    static = _try(trial, table, Recipe.STATIC)
    if static is None or static.refusal is not None:
        _try(trial, table, plan.spare)
    if trial.built.size_bytes < limits.SEARCH_BYTES:
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
    int8 = [entry for entry in table.entries if entry.recipe is not Recipe.FLOAT16]
    small_bytes = trial.built.size_bytes * _WORTH_IT
    if plan.mixes and int8 and all(e.refusal or e.built.size_bytes > small_bytes for e in int8):
        _mix(trial, table, end_ms)
    for entry in table.entries:
        if entry.refusal is None and entry.built.size_bytes < trial.built.size_bytes:
            race = Race(str(entry.path), str(trial.model), trial.golden, _RACE_MS)
            entry.raced = trial.laboratory.do(race, Raced, gate="quantisation", folder=trial.folder)
    winner = _fastest(table.entries)
    return _as_it_is(trial, table) if winner is None else _found(table, winner)


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


def _fastest(entries: list[_Entry]) -> _Entry | None:
    able = [
        (entry.raced.model_us / entry.raced.rival_us, number, entry)
        for number, entry in enumerate(entries)
        if entry.raced is not None and entry.raced.model_us <= entry.raced.rival_us
    ]
    return min(able)[2] if able else None


def _try(
    trial: Trial,
    table: _Table,
    recipe: Recipe,
    operators: Sequence[str] = (),
    note: str = "",
) -> _Entry | None:
    path = trial.folder / f"candidate-{len(table.entries) + len(table.failures)}.onnx"
    name = "int8 model" if recipe is not Recipe.FLOAT16 else "float16 model"
    try:
        built = _build(trial, recipe, trial.calibration, path, operators)
        outputs = trial.laboratory.run(path, trial.golden, trial.outputs, name, folder=trial.folder)
    except Refusal as refusal:
        # A model that passed its examination; this candidate of it did not work out.
        table.failures.append(Candidate(recipe, False, note=refusal.problem.detail[:300]))
        table.last = refusal
        return None
    found = parity.compare(trial.reference, outputs, list(trial.outputs), trial.kind)
    failed = None
    try:
        parity.check(found, trial.least_agreement)
    except Refusal as refusal:
        failed = refusal
    entry = _Entry(recipe, path, built, found, outputs, failed, note)
    table.entries.append(entry)
    return entry


def _build(
    trial: Trial,
    recipe: Recipe,
    calibration: list[RawTensor],
    path: Path,
    operators: Sequence[str] = (),
) -> Built:
    task = Build(str(trial.model), recipe, calibration, str(path), list(operators))
    return trial.laboratory.do(task, Built, gate="quantisation", folder=trial.folder)


def _mix(trial: Trial, table: _Table, end_ms: int) -> None:
    """Quantise all operators, then return the one that hurts most to float, and so on."""
    rows, path = head(trial.calibration, _SENSITIVITY_ROWS), trial.folder / "sensitivity.onnx"
    lab, outputs = trial.laboratory, trial.outputs
    reference = lab.run(trial.model, rows, outputs, "float model", folder=trial.folder)
    hurt: list[tuple[float, str]] = []
    for operator in sorted(set(trial.built.operators) & set(quantisation.ALL_OPERATORS)):
        if trial.monotonic_ms() > end_ms:
            return
        try:
            _build(trial, Recipe.MIXED, rows, path, [operator])
            alone = lab.run(path, rows, outputs, "int8 model", folder=trial.folder)
        except Refusal:
            continue  # it has no quantised form of its own here
        found = parity.compare(reference, alone, list(outputs), trial.kind)
        hurt.append((found.sqnr_db, operator))
    hurt.sort()
    kept = [operator for _, operator in hurt]
    while len(kept) > 1 and trial.monotonic_ms() < end_ms:
        back = [f"{operator} ({sqnr_db:.0f} dB)" for sqnr_db, operator in hurt]
        back = back[: len(hurt) - len(kept) + 1]
        kept = kept[1:]
        entry = _try(trial, table, Recipe.MIXED, kept, f"in float: {', '.join(back)}"[:300])
        if entry is not None and entry.refusal is None:
            return


def _as_it_is(trial: Trial, table: _Table) -> Found:
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
        trial.model.read_bytes(),
        trial.reference,
        exact,
        _rows(table, None),
        reason,
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
        entry.path.read_bytes(),
        entry.golden_outputs,
        entry.parity,
        _rows(table, entry),
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
            latency_us=None if entry.raced is None else round(entry.raced.model_us, 1),
            float_latency_us=None if entry.raced is None else round(entry.raced.rival_us, 1),
            note=entry.note,
        )
        for entry in table.entries
    ]
    return [*made, *table.failures]
