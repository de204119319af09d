"""What this device can run, found out by running something.

A library that installs and imports may still fail at the first inference, so a runtime counts only
after a tiny model gave the right answer; the newest opset and IR version are those with which the
tiny model still loaded. The model is written here byte by byte: there is no onnx package on a
device to write it with.
"""

import os
import platform
from pathlib import Path

import numpy as np

from device_agent.errors import InferenceFailed, StepFailed
from device_agent.inference import litert
from device_agent.inference.litert import LiteRuntime
from device_agent.inference.session import OnnxRuntime, OnnxSession
from fleet_contract.manifest import Capabilities, TensorSpec
from fleet_contract.manifest import Runtime as RuntimeName

_FIRST_OPSET, _LAST_OPSET = 13, 64
_FIRST_IR, _LAST_IR = 8, 32
_NUMPY = np.__version__[:40]
_TENSOR = [TensorSpec("x", "float32", [2])], [TensorSpec("y", "float32", [2])]


def tiny_model(*, opset: int, ir_version: int) -> bytes:
    """Return an ONNX model with y = x + x for two float32; both versions below 128."""
    value = b"\x12\x0a\x0a\x08\x08\x01\x12\x04\x0a\x02\x08\x02"  # float tensor of shape [2]
    node = b"\x0a\x01x\x0a\x01x\x12\x01y\x22\x03Add"  # input x, input x, output y, op Add
    graph = (
        _field(1, node)
        + _field(2, b"g")
        + _field(11, _field(1, b"x") + value)
        + _field(12, _field(1, b"y") + value)
    )
    return bytes([0x08, ir_version]) + _field(7, graph) + _field(8, bytes([0x10, opset]))


def capabilities() -> Capabilities:
    """Return what this device offers. Takes about 20 ms, with LiteRT 200 ms."""
    runtimes = {RuntimeName.LITERT.value: LiteRuntime().version} if litert.works() else {}
    if not _runs(_FIRST_OPSET, _FIRST_IR):
        return Capabilities(runtimes, platform.machine()[:40], 0, 0, memory_bytes(), _NUMPY)
    runtimes[RuntimeName.ONNXRUNTIME.value] = OnnxRuntime().version
    opset, ir_version = _FIRST_OPSET, _FIRST_IR
    while opset < _LAST_OPSET and _runs(opset + 1, _FIRST_IR):
        opset += 1
    while ir_version < _LAST_IR and _runs(_FIRST_OPSET, ir_version + 1):
        ir_version += 1
    return Capabilities(
        runtimes,
        platform.machine()[:40],
        opset,
        ir_version,
        memory_bytes(),
        _NUMPY,
    )


def memory_bytes() -> int:
    """Return the device's memory, or the control group's share of it where that is smaller."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return total
    return min(total, int(limit)) if limit.isdigit() else total


def _runs(opset: int, ir_version: int) -> bool:
    model = tiny_model(opset=opset, ir_version=ir_version)
    try:
        session = OnnxSession(model, inputs=_TENSOR[0], outputs=_TENSOR[1])
        outputs = session.run({"x": np.array([1.5, -2.0], np.float32)})
    except (StepFailed, InferenceFailed):
        return False
    return bool(np.array_equal(outputs["y"], [3.0, -4.0]))


def _field(number: int, content: bytes) -> bytes:
    """Return a length-delimited protobuf field; numbers below 16, contents below 128 bytes."""
    return bytes([number << 3 | 2, len(content)]) + content
