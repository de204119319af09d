"""Searches for the form in which a model ships: has candidates made, races them, picks one.

Decides which candidates are tried and which of them wins: the fastest that passes parity, is within
the size budget, smaller than the float model and not slower; of several as fast, the smallest. How
one is made and measured is in :mod:`fleet_server.releases.candidates`, mixed precision in
:mod:`fleet_server.releases.mixing`. A small model gets the default without a race: its size and
time matter to no device.
"""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from fleet_contract.manifest import Runtime
from fleet_server.releases import limits, mixing, timing
from fleet_server.releases.candidates import (
    WORDS,
    Entry,
    Found,
    Table,
    Trial,
    as_it_is,
    attempt,
    found_in,
)
from fleet_server.releases.laboratory.tasks import Built
from fleet_server.releases.states import Recipe, Refusal
from fleet_server.releases.timing import Heat, Runner

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
        return as_it_is(trial, Table(planned=0))
    end_ms = trial.monotonic_ms() + limits.SEARCH_MS
    plan, small = _plan(trial.built), trial.built.size_bytes < limits.SEARCH_BYTES
    table = Table(planned=1 if small else 1 + len(plan.more))
    static = attempt(trial, table, Recipe.STATIC)
    failed = static is None or (static.refusal and static.refusal.problem.code == "parity_failed")
    if failed and trial.monotonic_ms() < end_ms:
        table.planned += plan.spare not in plan.more
        attempt(trial, table, plan.spare)
    if small:
        for entry in table.entries:
            if entry.refusal is None:
                return found_in(table, entry)
        if static is not None and static.refusal is not None:
            raise static.refusal
        return as_it_is(trial, table)
    tried = {entry.recipe for entry in table.entries} | {item.recipe for item in table.failures}
    for recipe in plan.more:
        if trial.monotonic_ms() < end_ms and recipe not in tried:
            attempt(trial, table, recipe)
    if plan.mixes and any(entry.recipe in _INT8 for entry in table.entries):
        if not _saves(trial, table, _WORTH_IT):
            mixing.mix_operators(trial, table, end_ms)
        if not _saves(trial, table, _HALF):
            mixing.mix_layers(trial, table, end_ms)
    budget = trial.size_budget_bytes
    no_float = budget is not None and trial.built.size_bytes > budget
    # What saves less is chosen by the noise of the race, and no device gains by it.
    most_bytes = trial.built.size_bytes - 1 if no_float else trial.built.size_bytes * _WORTH_IT
    _time(
        trial,
        table,
        [
            entry
            for entry in table.entries
            if entry.refusal is None and entry.built.size_bytes <= most_bytes
        ],
    )
    winner = _fastest(table.entries, slower=no_float)
    return as_it_is(trial, table) if winner is None else found_in(table, winner)


def _time(trial: Trial, table: Table, entries: list[Entry]) -> None:
    """Note in the entries how fast they are beside float, and in the table where that was found."""
    if not entries:
        return
    float_model = Runner("float", trial.model, trial.built.size_bytes, trial.built.runtime)
    runners = [
        Runner(WORDS[entry.recipe], entry.path, entry.built.size_bytes, entry.built.runtime)
        for entry in entries
    ]
    table.times = timing.time(
        Heat(float_model, runners, trial.golden, trial.inputs, trial.outputs),
        trial.place,
        trial.laboratory,
        folder=trial.folder,
        gate="quantisation",
        on_try=trial.on_try,
    )
    for entry, found in zip(entries, table.times.figures, strict=True):
        if isinstance(found, str):
            # What does not run where it is to run is no choice.
            entry.note = "; ".join(filter(None, [entry.note, f"not timed: {found}"]))[:300]
        else:
            entry.raced = found


def _saves(trial: Trial, table: Table, share: float) -> bool:
    """Whether an int8 candidate passes and has at most this share of the float model's size."""
    return any(
        entry.recipe in _INT8
        and entry.refusal is None
        and entry.built.size_bytes <= trial.built.size_bytes * share
        for entry in table.entries
    )


def one(trial: Trial, recipe: Recipe) -> Found:
    """Make one candidate, whatever its speed, and whether it is smaller than the float model.

    Raises:
        Closed: if the server stops meanwhile.
        Refusal: if it cannot be made or run, fails parity, or is over the size budget.
    """
    table = Table()
    if recipe in {Recipe.FLOAT, Recipe.GIVEN}:
        return as_it_is(trial, table)
    entry = attempt(trial, table, recipe)
    if entry is None:
        raise cast(Refusal, table.last)
    if entry.refusal is not None:
        raise entry.refusal
    return found_in(table, entry)


def keep(found: Found, path: Path) -> Found:
    """Copy what was found to where no child can write, and no later search over it."""
    # Not by way of this process' memory: it may be half a gigabyte.
    shutil.copyfile(found.artifact, path)
    return replace(found, artifact=path)


def _fastest(entries: list[Entry], *, slower: bool) -> Entry | None:
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
