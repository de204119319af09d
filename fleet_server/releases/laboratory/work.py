"""Does a task, inside the confined child: the only place where an uploaded model is opened and run.

Decides what is tried: what each trial means is in :mod:`fleet_server.releases.examination`,
:mod:`fleet_server.releases.execution` and :mod:`fleet_server.releases.quantisation`.
"""

import resource
import statistics
from pathlib import Path

import numpy as np
import onnx

from fleet_contract.manifest import Runtime, TensorSpec
from fleet_server.clock import SystemClock
from fleet_server.releases import (
    examination,
    execution,
    limits,
    quantisation,
    specialisation,
)
from fleet_server.releases.examples import Rows
from fleet_server.releases.formats import runtime_of
from fleet_server.releases.laboratory import custom_gates, exercise
from fleet_server.releases.laboratory.tasks import (
    Ask,
    Build,
    Built,
    Examine,
    Examined,
    Exercise,
    Race,
    Raced,
    Ran,
    RawTensor,
    Refused,
    Result,
    Run,
    Survey,
    Surveyed,
    Task,
    Weigh,
    Weighed,
)
from fleet_server.releases.litert import examination as tflite
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
            case Survey():
                found = quantisation.layers(Path(task.model), Path(task.folder))
                usable = [name for name in found if len(name) <= 200]
                return Surveyed(usable[: limits.LAYERS])
            case Run():
                return _run(task)
            case Race():
                return _race(task)
            case Exercise():
                return exercise.exercise(
                    Path(task.model).read_bytes(),
                    Path(task.float_model).read_bytes(),
                    _load(task.inputs),
                    task.outputs,
                    task.kind,
                    monotonic_us=SystemClock().monotonic_us,
                )
            case Weigh():
                return _weigh(task)
            case Ask():
                groups = {name: _load(tensors) for name, tensors in task.rows.items()}
                return custom_gates.ask(task, groups)
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
    data, changed_bytes = path.read_bytes(), 0
    if runtime_of(data) is Runtime.LITERT:
        return _examine_tflite(data)
    found = examination.examine(data, task.interface)
    if found.changed:
        target = Path(task.target)
        data = specialisation.fold(found.model, target.parent).SerializeToString()
        found = examination.examine(data)
        target.write_bytes(data)
        changed_bytes = len(data)
    for rows in (1, 3):
        inputs: Rows = {
            s.name: np.zeros([rows, *_rest(s)], np.dtype(s.dtype)) for s in found.inputs
        }
        execution.probe(data, inputs, absurd=False)
    # What a device's application may send by mistake: an error is right, the end of the child not.
    for absurd in ([0], [1, 1], [2, 7, 7]):
        shapes: Rows = {s.name: np.zeros(absurd, np.dtype(s.dtype)) for s in found.inputs}
        execution.probe(data, shapes, absurd=True)
    return Examined(
        found.inputs,
        found.outputs,
        found.opset,
        found.ir_version,
        found.operators,
        changed_bytes,
    )


def _examine_tflite(data: bytes) -> Examined:
    found = tflite.examine(data)
    # Rows are run one by one: no shape but the file's own ever reaches the runtime.
    for filler in (np.zeros, np.ones):
        inputs: Rows = {s.name: filler([2, *_rest(s)], np.dtype(s.dtype)) for s in found.inputs}
        execution.probe(data, inputs, absurd=False)
    return Examined(
        found.inputs,
        found.outputs,
        0,
        0,
        found.operators,
        runtime=Runtime.LITERT,
        quantised=found.quantised,
    )


def _build(task: Build) -> Built:
    target = Path(task.target)
    source = Path(task.model).read_bytes()
    if runtime_of(source) is Runtime.LITERT:
        from fleet_server.releases.litert import quantisation as litert_quantisation

        data = litert_quantisation.build(source, task.recipe, _load(task.calibration))
        target.write_bytes(data)
        return Built(len(data), 0, 0, tflite.examine(data).operators, Runtime.LITERT)
    data = quantisation.build(
        Path(task.model),
        task.recipe,
        _load(task.calibration),
        target.parent,
        task.operators,
        task.layers,
    )
    target.write_bytes(data)
    model = onnx.ModelProto.FromString(data)
    opset = max(item.version for item in model.opset_import if item.domain in {"", "ai.onnx"})
    operators = sorted({node.op_type for node in examination.nodes(model)})
    return Built(len(data), opset, model.ir_version, operators)


def _run(task: Run) -> Ran:
    data, inputs = Path(task.model).read_bytes(), _load(task.inputs)
    if task.states:
        results = execution.follow(
            data, inputs, task.outputs, task.what, states=task.states, steps=task.steps
        )
    else:
        results = execution.run(data, inputs, task.outputs, task.what)
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
            started_us = clock.thread_us()
            sessions[number].run(None, row)
            times[number].append(clock.thread_us() - started_us)
    return Raced(statistics.median(times[0]), statistics.median(times[1]), len(times[0]))


def _weigh(task: Weigh) -> Weighed:
    inputs = _load(task.inputs)
    rows = len(next(iter(inputs.values())))
    # A fork's highest mark starts at what it holds then, not at its parent's highest.
    rest_bytes = _peak_bytes()
    loaded = execution.session(Path(task.model).read_bytes())
    for turn in range(_LEAST_ROUNDS):
        at = turn % rows
        loaded.run(None, {name: array[at : at + 1] for name, array in inputs.items()})
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
