"""Does a task, inside the confined child: the only place where an uploaded model is opened and run.

Decides what is tried: what each trial means is in :mod:`fleet_server.releases.examination`,
:mod:`fleet_server.releases.execution` and :mod:`fleet_server.releases.quantisation`.
"""

import resource
import statistics
from pathlib import Path

import numpy as np
import onnx

from fleet_contract.manifest import TensorSpec
from fleet_server.clock import SystemClock
from fleet_server.releases import examination, execution, limits, quantisation
from fleet_server.releases.examples import Rows
from fleet_server.releases.laboratory.tasks import (
    Build,
    Built,
    Examine,
    Examined,
    Race,
    Raced,
    Ran,
    RawTensor,
    Refused,
    Result,
    Run,
    Task,
    Weigh,
    Weighed,
)
from fleet_server.releases.states import Problem, Refusal

_LEAST_ROUNDS, _MOST_ROUNDS = 5, 400


def do(task: Task) -> Result:
    """Do a task; a refusal is a result, and so is memory that ran out."""
    try:
        match task:
            case Examine():
                return _examine(task)
            case Build():
                return _build(task)
            case Run():
                return _run(task)
            case Race():
                return _race(task)
            case Weigh():
                return _weigh(task)
    except Refusal as refusal:
        return Refused(refusal.problem)
    except MemoryError:
        return Refused(
            Problem(
                "execution",
                "too_much_memory",
                "The model asks for more memory than a trial may use.",
                "Look for Expand, Tile and ConstantOfShape with huge shapes; a device has less.",
                bound=float(limits.CHILD_MEMORY_BYTES),
            )
        )


def _examine(task: Examine) -> Examined:
    path = Path(task.model)
    examination.check_size(path.stat().st_size)
    found = examination.examine(path.read_bytes())
    for rows in (1, 3):
        inputs: Rows = {
            s.name: np.zeros([rows, *_rest(s)], np.dtype(s.dtype)) for s in found.inputs
        }
        execution.probe(path.read_bytes(), inputs, absurd=False)
    # What a device's application may send by mistake: an error is right, the end of the child not.
    for absurd in ([0], [1, 1], [2, 7, 7]):
        shapes: Rows = {s.name: np.zeros(absurd, np.dtype(s.dtype)) for s in found.inputs}
        execution.probe(path.read_bytes(), shapes, absurd=True)
    return Examined(found.inputs, found.outputs, found.opset, found.ir_version, found.operators)


def _build(task: Build) -> Built:
    target = Path(task.target)
    data = quantisation.build(
        Path(task.model),
        task.recipe,
        _load(task.calibration),
        target.parent,
        task.operators,
    )
    target.write_bytes(data)
    model = onnx.ModelProto.FromString(data)
    opset = max(item.version for item in model.opset_import if item.domain in {"", "ai.onnx"})
    operators = sorted({node.op_type for node in examination.nodes(model)})
    return Built(len(data), opset, model.ir_version, operators)


def _run(task: Run) -> Ran:
    results = execution.run(
        Path(task.model).read_bytes(), _load(task.inputs), task.outputs, task.what
    )
    for number, spec in enumerate(task.outputs):
        array = np.ascontiguousarray(results[spec.name])
        array.astype(array.dtype.newbyteorder("<")).tofile(f"{task.target}{number}")
    return Ran()


def _race(task: Race) -> Raced:
    inputs = _load(task.inputs)
    rows = len(next(iter(inputs.values())))
    sessions = [execution.session(Path(path).read_bytes()) for path in (task.model, task.rival)]
    times: tuple[list[float], list[float]] = ([], [])
    clock = SystemClock()
    end_us = clock.monotonic_us() + task.most_ms * 1_000
    for turn in range(_MOST_ROUNDS):
        if turn >= _LEAST_ROUNDS and clock.monotonic_us() > end_us:
            break
        row = {name: array[turn % rows : turn % rows + 1] for name, array in inputs.items()}
        # In turns, so that whatever else the machine does hits both.
        for number in (0, 1) if turn % 2 else (1, 0):
            started_us = clock.monotonic_us()
            sessions[number].run(None, row)
            times[number].append(clock.monotonic_us() - started_us)
    return Raced(statistics.median(times[0]), statistics.median(times[1]), len(times[0]))


def _weigh(task: Weigh) -> Weighed:
    # A fork's highest mark starts at what it holds then, not at its parent's highest.
    rest_bytes = _peak_bytes()
    execution.probe(Path(task.model).read_bytes(), _load(task.inputs), absurd=False)
    return Weighed(rest_bytes, _peak_bytes())


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _load(tensors: list[RawTensor]) -> Rows:
    return {
        item.name: np.memmap(item.path, np.dtype(item.dtype), "r", shape=tuple(item.shape))
        for item in tensors
    }


def _rest(spec: TensorSpec) -> list[int]:
    return [size or 1 for size in spec.shape[1:]]
