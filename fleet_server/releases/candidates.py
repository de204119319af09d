"""A trial: a float model on the bench, what is made of it, and what each candidate came to.

Decides how one candidate is made, measured and judged by itself; which are made and which of them
ships is decided in :mod:`fleet_server.releases.search`. A model with states must pass parity twice:
step by step from given states, and over sequences in which it gets its own states back.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fleet_contract.manifest import TensorSpec
from fleet_server.releases import parity
from fleet_server.releases.examples import Rows
from fleet_server.releases.laboratory.laboratory import Laboratory
from fleet_server.releases.laboratory.tasks import Build, Built, Raced, RawTensor
from fleet_server.releases.parity import Parity
from fleet_server.releases.states import Candidate, OutputKind, Recipe, Refusal
from fleet_server.releases.timing import Place, Times

WORDS = {
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
        place: where candidates are timed, besides on the server.
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
    inputs: Sequence[TensorSpec] = ()
    place: Place = field(default_factory=Place)


@dataclass(frozen=True, slots=True)
class Found:
    """What ships. ``artifact`` is where it lies: where children may write, so copy it before the
    next one runs. ``reason`` says why it is the float model, where it is; ``times`` says on what
    candidates were timed, if they were.
    """

    recipe: Recipe
    built: Built
    artifact: Path
    golden_outputs: Rows
    parity: Parity
    candidates: list[Candidate]
    sequence: Parity | None = None
    reason: str = ""
    times: Times | None = None


@dataclass(slots=True)
class Entry:
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
class Table:
    """What was tried so far. ``last`` is why the latest failure failed; ``planned`` how many
    candidates people are told of, ``times`` where those with figures were timed."""

    entries: list[Entry] = field(default_factory=list)
    failures: list[Candidate] = field(default_factory=list)
    last: Refusal | None = None
    planned: int = 1
    times: Times | None = None


def attempt(
    trial: Trial,
    table: Table,
    recipe: Recipe,
    *,
    operators: Sequence[str] = (),
    layers: Sequence[str] = (),
    note: str = "",
) -> Entry | None:
    """Make a candidate, run and judge it, and note in the table what came of it.

    Args:
        trial: of which model.
        table: gets a row, also of what could not be made.
        recipe: how it is made.
        operators: of the mixed recipe by operators: those in int8.
        layers: of the mixed recipe by layers: those in int8.
        note: for the table.

    Returns:
        The candidate, with a refusal if it fails parity or the budget; None if it could not be
        made or run.

    Raises:
        Closed: if the server stops meanwhile.
    """
    number = len(table.entries) + len(table.failures)
    table.planned = max(table.planned, number + 1)
    trial.on_try(f"{number + 1} of {table.planned}: {WORDS[recipe]}")
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
    entry = Entry(
        recipe,
        path,
        built,
        parity.compare(trial.reference, given, list(outputs), trial.kind),
        given,
    )
    entry.note = note
    if trial.followed is not None and followed is not None:
        entry.sequence = drift(trial, trial.followed, followed)
    try:
        _check_budget(trial, built.size_bytes, "The candidate")
        parity.check(entry.parity, trial.least_agreement)
        if entry.sequence is not None:
            parity.check(entry.sequence, trial.least_agreement, "steps with its own states")
    except Refusal as refusal:
        entry.refusal = refusal
        # The table has columns for these two only.
        shown = refusal.problem.figure in {entry.parity.agreement, entry.parity.sqnr_db}
        if not shown or entry.sequence is not None:
            entry.note = "; ".join(filter(None, [note, refusal.problem.detail]))[:300]
    table.entries.append(entry)
    return entry


def drift(trial: Trial, reference: Rows, candidate: Rows) -> Parity:
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


def as_it_is(trial: Trial, table: Table) -> Found:
    """Return the model as it came, and why.

    Raises:
        Refusal: ``over_size_budget`` if it is too large.
    """
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
        times=table.times,
    )


def found_in(table: Table, entry: Entry) -> Found:
    """Return a candidate as what ships.

    Raises:
        Refusal: ``child_crashed`` if its file is not the one that was made.
    """
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
        times=table.times,
    )


def _rows(table: Table, chosen: Entry | None) -> list[Candidate]:
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
            timed_on="" if entry.raced is None or table.times is None else table.times.where,
        )
        for entry in table.entries
    ]
    return [*made, *table.failures]
