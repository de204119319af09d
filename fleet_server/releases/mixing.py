"""Mixed precision: what hurts most in int8 is returned to float, operator by operator or by layers.

Decides in which order, from how much each part alone in int8 hurts, and when that ends. How a
candidate is made and judged is in :mod:`fleet_server.releases.candidates`.
"""

from collections.abc import Sequence

from fleet_server.releases import limits, parity, quantisation
from fleet_server.releases.candidates import Table, Trial, attempt
from fleet_server.releases.laboratory.laboratory import head
from fleet_server.releases.laboratory.tasks import Build, Built, Survey, Surveyed
from fleet_server.releases.states import Recipe, Refusal

_SENSITIVITY_ROWS = 64


def mix_operators(trial: Trial, table: Table, end_ms: int) -> None:
    """Quantise all operators, then return the one that hurts most to float, and so on.

    ``end_ms`` is when to stop, on the trial's clock.

    Raises:
        Closed: if the server stops meanwhile.
    """
    wanted = sorted(set(trial.built.operators) & set(quantisation.ALL_OPERATORS))
    hurt = _sensitivity(trial, Recipe.MIXED, wanted, end_ms)
    for count in range(1, len(hurt)):
        if trial.monotonic_ms() > end_ms:
            return
        kept = [operator for _, operator in hurt[count:]]
        entry = attempt(trial, table, Recipe.MIXED, operators=kept, note=_in_float(hurt[:count]))
        if entry is not None and entry.refusal is None:
            return


def mix_layers(trial: Trial, table: Table, end_ms: int) -> None:
    """Find how many of the layers that hurt most must be in float; the others are in int8.

    ``end_ms`` is when to stop, on the trial's clock.

    Raises:
        Closed: if the server stops meanwhile.
    """
    lab, folder = trial.laboratory, trial.folder
    try:
        task = Survey(str(trial.model), str(folder))
        layers = lab.do(task, Surveyed, gate="quantisation", folder=folder).layers
    except Refusal:
        return  # what the tools cannot prepare has no int8 form
    found = [name for name in layers if name.isprintable()]  # they are shown to people
    now_ms = trial.monotonic_ms()
    hurt = _sensitivity(trial, Recipe.MIXED_LAYERS, found, min(end_ms, now_ms + limits.LAYERS_MS))
    # By halves: with more layers in float it gets better, as a rule.
    fails, passes = 0, len(hurt)
    while passes - fails > 1 and trial.monotonic_ms() < end_ms:
        count = (fails + passes) // 2
        kept = [layer for _, layer in hurt[count:]]
        entry = attempt(
            trial, table, Recipe.MIXED_LAYERS, layers=kept, note=_in_float(hurt[:count])
        )
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
