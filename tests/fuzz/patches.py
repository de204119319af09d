"""What reads patches, and the models that patches are made of, for the fuzzer.

Patches are tried as they come, and as what is in the frame, so that mutations get behind zstd.
"""

from __future__ import annotations

import functools
import io
import json
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from fleet_contract.deltas.decoder import Decoder
from fleet_contract.deltas.form import HEADER_BYTES
from fleet_contract.deltas.zstandard import zstd
from fleet_server.deltas.alignment import align, find_tensors

_VECTOR = json.loads(
    (Path(__file__).parents[1] / "fleet_contract" / "vectors" / "patch.json").read_text("utf-8")
)
OLD, PATCH, CONTENT = (
    bytes.fromhex(_VECTOR[f"{name}_hex"]) for name in ("old", "patch", "content")
)


def decode(data: bytes) -> int:
    """Apply a patch to the vector's old file; no more comes out than it says itself."""
    decoder = Decoder(io.BytesIO(data).read)
    made = 0
    for piece in decoder.pieces(lambda at, size: OLD[at : at + size]):
        made += len(piece)
        assert made <= decoder.header.new_bytes
    assert made == decoder.header.new_bytes
    return made


def decode_content(data: bytes) -> int:
    """The same with these bytes in the frame."""
    return decode(PATCH[:HEADER_BYTES] + zstd.compress(data, level=1))


@functools.cache
def model() -> bytes:
    """A small ONNX file with tensors in more than one place."""
    tensor = numpy_helper.from_array(np.arange(40, dtype=np.float32), "w")
    nodes = [helper.make_node("Constant", [], ["c"], value=tensor)]
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 40])]
    graph = helper.make_graph(nodes, "g", given, given, [tensor])
    return bytes(helper.make_model(graph).SerializeToString())


def align_models(data: bytes) -> None:
    """What is found in any file lies in it, and the ranges cover it, whatever it is."""
    new, old = memoryview(data), memoryview(model())
    for tensor in find_tensors(new):
        assert 0 <= tensor.start < tensor.start + tensor.size_bytes <= len(data)
    for first, second in ((old, new), (new, old)):
        end = 0
        for item in align(first, second):
            assert item.start == end
            assert item.base is None or item.base + item.size_bytes <= len(first)
            end += item.size_bytes
        assert end == len(second)
