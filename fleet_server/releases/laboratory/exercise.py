"""Runs a model on what it was not made for: bad inputs, noise, and the same rows again.

Decides which bad inputs are tried; which answers will do is decided by the gates. Runs inside the
laboratory's children only. All of it is repeatable: the noise has a seed.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from fleet_contract.manifest import TensorSpec
from fleet_server.releases import execution, limits
from fleet_server.releases.examples import Rows, count
from fleet_server.releases.gates.exercised import Exercised
from fleet_server.releases.states import OutputKind, Refusal

NOISE = 0.01
"""Of an input's deviation: what a sensor's last digit does."""
FAR = 10
"""How many spans out of range: a wrong unit or a broken sensor, yet no overflow by itself."""
SHARE = 0.1
"""Of a row's values that are missing or replaced."""
ALONE_ROWS = 32
LEAST_ROWS = 8
_TURNS = 11
_MOVED = 0.1
"""Of an output's deviation: beyond it a row's values count as another answer."""
_MOST = 1e9
_SEED = 4

Array = NDArray[np.generic]
Spoil = Callable[[Array, np.random.Generator], Array]


def exercise(
    data: bytes,
    float_data: bytes,
    rows: Rows,
    outputs: Sequence[TensorSpec],
    kind: OutputKind,
    *,
    monotonic_us: Callable[[], float],
) -> Exercised:
    """Return how a model takes bad inputs, and whether it repeats itself.

    Args:
        data: the model's file, of either runtime.
        float_data: the model that it was made of: only with missing values, to compare with.
        rows: usual inputs, few enough for one batch.
        outputs: what it declares to return.
        kind: how the first of them is to be read.
        monotonic_us: a clock; of a slow model fewer rows are tried.

    Raises:
        Refusal: ``does_not_run`` if it fails on the usual rows.
    """
    session = execution.session(data)
    rows = _affordable(session, rows, outputs, monotonic_us)
    usual = _answer(session, rows, outputs)
    again = _answer(session, rows, outputs)
    other = _answer(execution.session(data), rows, outputs)
    alone = [
        _answer(session, {name: array[i : i + 1] for name, array in rows.items()}, outputs)
        for i in range(min(ALONE_ROWS, count(rows)))
    ]
    if usual is None or again is None or other is None or None in alone:
        raise Refusal(
            "robustness",
            "does_not_run",
            "The model fails on its baseline rows, or one of them alone.",
            "Try it where you export it, row by row.",
        )
    single = [np.concatenate(parts) for parts in zip(*filter(None, alone), strict=True)]
    has_floats = any(array.dtype.kind == "f" for array in rows.values())
    missing = missing_float = None
    if has_floats:
        missing = _finite(session, rows, outputs, _missing)
        missing_float = _finite(execution.session(float_data), rows, outputs, _missing)
    return Exercised(
        rows=count(rows),
        missing_finite=missing,
        missing_finite_float=missing_float,
        out_of_range_finite=_finite(session, rows, outputs, _far),
        corrupted_finite=_finite(session, rows, outputs, _corrupted),
        flips=_flips(session, rows, outputs, kind, usual[0]) if has_floats else None,
        run_difference=_difference(usual, again),
        session_difference=_difference(usual, other),
        batch_difference=_difference([part[: len(single[0])] for part in usual], single, usual),
    )


def _affordable(
    session: execution.Session,
    rows: Rows,
    outputs: Sequence[TensorSpec],
    monotonic_us: Callable[[], float],
) -> Rows:
    """The first rows: as many as can be tried in the time, by what two of them take."""
    began_us = monotonic_us()
    _answer(session, {name: array[:2] for name, array in rows.items()}, outputs)
    row_us = max(1.0, (monotonic_us() - began_us) / 2)
    most = max(LEAST_ROWS, int(limits.EXERCISE_MS * 1_000 / (_TURNS * row_us)))
    return {name: array[:most] for name, array in rows.items()}


def _answer(
    session: execution.Session, rows: Rows, outputs: Sequence[TensorSpec]
) -> list[Array] | None:
    """The outputs; None if the runtime fails or they have another shape or type than declared."""
    try:
        found = session.run([spec.name for spec in outputs], rows)
    except Exception:  # onnxruntime raises many kinds, with no common root of its own
        return None
    arrays = [np.asarray(part) for part in found]
    for array, spec in zip(arrays, outputs, strict=True):
        if list(array.shape) != [count(rows), *spec.shape[1:]] or array.dtype != spec.dtype:
            return None
    return arrays


def _finite(
    session: execution.Session,
    rows: Rows,
    outputs: Sequence[TensorSpec],
    spoil: Spoil,
) -> float:
    """The share of rows whose outputs are all finite, 0 if the model fails on them."""
    codes = [name for name, array in rows.items() if array.dtype.kind != "f"]
    found = _answer(session, _spoilt(rows, spoil, leave=[]), outputs)
    if found is None and codes:
        # An error is a right answer to a code that does not exist; numbers are another matter.
        if len(codes) == len(rows):
            return 1.0
        found = _answer(session, _spoilt(rows, spoil, leave=codes), outputs)
    if found is None:
        return 0.0
    fine = np.ones(count(rows), dtype=bool)
    for array in found:
        if array.dtype.kind == "f":
            fine &= np.isfinite(array.reshape(len(array), -1)).all(axis=1)
    return float(fine.mean())


def _spoilt(rows: Rows, spoil: Spoil, *, leave: Sequence[str]) -> Rows:
    random = np.random.default_rng(_SEED)
    return {
        name: array if name in leave else np.ascontiguousarray(spoil(array, random))
        for name, array in rows.items()
    }


def _missing(array: Array, random: np.random.Generator) -> Array:
    """Every other row without any value, the rest without a tenth of them, and one at least."""
    if array.dtype.kind != "f":
        return array
    found = np.array(array)
    flat = found.reshape(len(found), -1)
    flat[random.random(flat.shape) < SHARE] = np.nan
    flat[np.arange(len(flat)), random.integers(flat.shape[1], size=len(flat))] = np.nan
    flat[::2] = np.nan
    return found


def _far(array: Array, random: np.random.Generator) -> Array:
    """Rows of values far above the range, rows far below, rows a hundred times too large."""
    low, high = float(array.min()), float(array.max())
    span = (high - low) or 1.0
    found = np.array(array, dtype=np.float64)
    found[0::3] = high + FAR * span
    found[1::3] = low - FAR * span
    found[2::3] *= 100
    return _as(found, array)


def _corrupted(array: Array, random: np.random.Generator) -> Array:
    """Rows with a tenth of the values replaced, rows in another order, rows stuck at one value."""
    low, high = float(array.min()), float(array.max())
    reach = FAR * ((high - low) or 1.0)
    found = np.array(array, dtype=np.float64)
    flat = found.reshape(len(found), -1)
    hit = random.random(flat[0::3].shape) < SHARE
    flat[0::3][hit] = random.uniform(low - reach, high + reach, int(hit.sum()))
    flat[1::3] = random.permuted(flat[1::3], axis=1)
    flat[2::3] = flat[2::3, :1]
    return _as(found, array)


def _as(values: NDArray[np.float64], array: Array) -> Array:
    if array.dtype.kind == "b":
        return values > 0
    if array.dtype.kind == "f":
        # Far out of range is a number still: 16 bits end at 65,504.
        real = np.finfo(array.dtype.name)
        values = np.clip(values, float(real.min), float(real.max))
    if array.dtype.kind in "iu":
        whole = np.iinfo(array.dtype.name)
        # The largest of 64 bits is no float: what would be rounded up to it is left out.
        values = np.clip(values, float(whole.min), float(whole.max) * (1 - 1e-12))
    return values.astype(array.dtype)


def _flips(
    session: execution.Session,
    rows: Rows,
    outputs: Sequence[TensorSpec],
    kind: OutputKind,
    usual: Array,
) -> float:
    def shake(array: Array, random: np.random.Generator) -> Array:
        if array.dtype.kind != "f":
            return array
        table = array.ndim == 2
        deviation = array.std(axis=0 if table else None, dtype=np.float64)
        noise = random.normal(size=array.shape) * deviation * NOISE
        shaken: Array = (array.astype(np.float64) + noise).astype(array.dtype)
        return shaken

    found = _answer(session, _spoilt(rows, shake, leave=[]), outputs)
    if found is None:
        return 1.0
    before = usual.reshape(len(usual), -1).astype(np.float64)
    after = found[0].reshape(len(usual), -1).astype(np.float64)
    if kind is OutputKind.VALUES:
        # A row's values together: one of thousands always moves, by the steps of int8 alone.
        moved = np.sqrt(((after - before) ** 2).sum(axis=1))
        allowed = max(_MOVED * float(np.sqrt(before.var(axis=0).sum())), 1e-6)
        # A value that is not finite is another answer, too.
        return float((~(moved <= allowed)).mean())
    return float((before.argmax(axis=1) != after.argmax(axis=1)).mean())


def _difference(
    one: Sequence[Array], two: Sequence[Array], spans: Sequence[Array] | None = None
) -> float:
    found = 0.0
    for first, second, whole in zip(one, two, spans or one, strict=True):
        values = whole.astype(np.float64)
        span = float(values.max() - values.min()) or 1.0
        apart = np.abs(first.astype(np.float64) - second.astype(np.float64)).max() / span
        found = max(found, float(np.nan_to_num(apart, nan=_MOST, posinf=_MOST)))
    return min(found, _MOST)
