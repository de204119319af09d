"""Guards the size and the exactness of patches, whatever two files they are between."""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from fleet_contract.deltas.decoder import Decoder
from fleet_server.deltas.alignment import align, find_tensors
from fleet_server.deltas.encoder import encode

WEIGHTS = np.random.default_rng(5).normal(size=(64, 700)).astype(np.float32)


def make_patch(old: bytes, new: bytes, level: int = 9) -> bytes:
    written = bytearray()
    digests = [hashlib.sha256(data).hexdigest() for data in (old, new)]
    encode(
        memoryview(old),
        memoryview(new),
        written.extend,
        old_digest=digests[0],
        new_digest=digests[1],
        level=level,
    )
    return bytes(written)


def apply(old: bytes, patch: bytes) -> bytes:
    left = memoryview(patch)

    def read(size: int) -> bytes:
        nonlocal left
        piece, left = bytes(left[:size]), left[size:]
        return piece

    return b"".join(Decoder(read).pieces(lambda start, size: old[start : start + size]))


def model(weights: np.ndarray, *, doc: str = "", extra: int = 0) -> bytes:
    """A network with weights in the graph, in a constant's attribute, and in a subgraph."""
    inner = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w_inner"], ["y_inner"])],
        "inner",
        [],
        [helper.make_tensor_value_info("y_inner", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weights * np.float32(0.5), "w_inner")],
    )
    nodes = [
        helper.make_node(
            "Constant", [], ["c"], value=numpy_helper.from_array(weights[:2].astype(np.int64), "c")
        ),
        helper.make_node("If", ["condition"], ["y"], then_branch=inner, else_branch=inner),
    ]
    nodes += [helper.make_node("Relu", ["y"], [f"r{number}"]) for number in range(extra)]
    graph = helper.make_graph(
        nodes,
        "outer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", weights.shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(weights, "w"),
            numpy_helper.from_array((weights * 20).astype(np.int8), "w8"),
            helper.make_tensor("listed", TensorProto.FLOAT, [50], weights.reshape(-1)[:50]),
        ],
        doc_string=doc,
    )
    return bytes(helper.make_model(graph).SerializeToString())


def flatbuffer(data: bytes) -> bytes:
    """The least TFLite file: a model with one buffer that belongs to one float tensor."""
    # Written back to front would be usual; here every offset is counted by hand.
    vtable_model = struct.pack("<7H", 14, 12, 0, 0, 4, 0, 8)
    body = bytearray(struct.pack("<I4s", 24, b"TFL3") + vtable_model + bytes(2))
    body += struct.pack("<iII", 24 - 8, 8, 16)  # model at 24: subgraphs at 36, buffers at 48
    body += struct.pack("<II", 1, 0) + bytes(4)
    body += struct.pack("<II", 1, 0)
    subgraph = len(body) + 8
    body += struct.pack("<HHHH", 6, 8, 4, 0) + struct.pack("<iI", 8, 4)
    struct.pack_into("<I", body, 40, subgraph - 40)
    body += struct.pack("<II", 1, 0)
    tensor = len(body) + 12
    struct.pack_into("<I", body, tensor - 16, 16)
    body += struct.pack("<6H", 12, 16, 0, 12, 4, 8)
    body += struct.pack("<iIIb3x", 12, 0, 8, 0)
    struct.pack_into("<I", body, tensor + 8, 8)
    body += struct.pack("<I4s", 4, b"name")
    buffer = len(body) + 8
    body += struct.pack("<HHHH", 6, 8, 4, 0) + struct.pack("<iI", 8, 4)
    struct.pack_into("<I", body, 52, buffer - 52)
    return bytes(body + struct.pack("<I", len(data)) + data)


def tuned(weights: np.ndarray, share: float) -> np.ndarray:
    noise = np.random.default_rng(6).normal(size=weights.shape).astype(np.float32)
    return weights * (1 + np.float32(share) * noise)


@given(st.binary(max_size=3000), st.binary(max_size=3000), st.lists(st.integers(0, 2999)))
def test_any_two_files(old: bytes, other: bytes, cuts: list[int]) -> None:
    """Unrelated ones, and one that holds parts of the other in another order."""
    mixed = b"".join(old[cut : cut + 200] + other[:7] for cut in cuts)
    for new in (other, mixed, old + other, other + old, old[3:]):
        assert apply(old, make_patch(old, new)) == new


@given(st.data())
def test_any_damage_to_a_model(data: st.DataObject) -> None:
    """A file that is nearly a model must not stop the encoder, nor lead it to a wrong patch."""
    kind = data.draw(st.sampled_from(["onnx", "tflite"]))
    small = WEIGHTS[:8, :9]
    old = model(small) if kind == "onnx" else flatbuffer(small.tobytes())
    new = bytearray(old)
    for _ in range(data.draw(st.integers(1, 6))):
        new[data.draw(st.integers(0, min(300, len(new) - 1)))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(1, len(new)))
    for fresh in (bytes(new), bytes(new[:cut])):
        assert apply(old, make_patch(old, fresh)) == fresh
        assert apply(fresh, make_patch(fresh, old)) == old


def test_every_tensor_of_onnx_is_found() -> None:
    data = model(WEIGHTS)
    found = find_tensors(memoryview(data))
    sizes = sorted((tensor.size_bytes, tensor.width_bytes) for tensor in found)
    count = WEIGHTS.size
    # Once in the graph, once in each branch, as 8 bits, as a constant of 64, and 50 listed floats.
    assert sizes == sorted([(4 * count, 4)] * 3 + [(count, 1), (2 * 700 * 8, 8), (200, 4)])
    held = {data[item.start : item.start + item.size_bytes] for item in found}
    assert WEIGHTS.tobytes() in held


def test_the_tensor_of_tflite_is_found() -> None:
    data = flatbuffer(WEIGHTS.tobytes())
    [tensor] = find_tensors(memoryview(data))
    assert data[tensor.start : tensor.start + tensor.size_bytes] == WEIGHTS.tobytes()
    assert (tensor.key, tensor.width_bytes) == ("name", 4)


@pytest.mark.parametrize("make", [model, lambda weights: flatbuffer(weights.tobytes())])
def test_fine_tuned_floats_cost_less_than_their_top_bytes(make) -> None:
    old, new = make(WEIGHTS), make(tuned(WEIGHTS, 0.001))
    patch = make_patch(old, new)
    assert apply(old, patch) == new
    # A relative change of a thousandth leaves about 14 of 32 bits.
    assert len(patch) < 0.55 * len(new)


def test_the_same_file_costs_next_to_nothing() -> None:
    old = model(WEIGHTS)
    assert len(make_patch(old, old)) < 200


def test_moved_and_renamed_structure_costs_only_itself() -> None:
    """Inserted nodes and another text move all tensors; none is sent again for that."""
    old, new = model(WEIGHTS), model(WEIGHTS, doc="what changed", extra=20)
    patch = make_patch(old, new)
    assert apply(old, patch) == new
    assert len(patch) < 0.01 * len(new)


def test_aligned_ranges_cover_the_new_file() -> None:
    old, new = model(WEIGHTS), model(tuned(WEIGHTS, 0.1), doc="longer", extra=3)
    position = 0
    for item in align(memoryview(old), memoryview(new)):
        assert item.start == position
        position += item.size_bytes
    assert position == len(new)
