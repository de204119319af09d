"""Finds tensors in an ONNX file without unpacking it: their place is what counts.

The onnx library parses into copies and does not say where the bytes were, so the protobuf wire form
is walked here: only the fields on the way to tensors, in graphs, subgraphs and functions.
"""

from collections.abc import Iterator

from fleet_server.deltas.tensors import MOST_TENSORS, NotUnderstood, Tensor

_NESTING = 32
# Field numbers of onnx.proto: message → field → message that it holds.
_WAYS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph"},
}
_NAMES = {"graph": 2, "function": 1, "node": 3, "attribute": 1, "tensor": 8}
_RAW_DATA, _DATA_TYPE = 9, 2
_PACKED_WIDTHS = {4: 4, 10: 8}
"""float_data and double_data; other fields hold numbers of varying length."""
_WIDTHS = {
    **dict.fromkeys((1, 6, 12), 4),
    **dict.fromkeys((4, 5, 10, 16), 2),
    **dict.fromkeys((7, 11, 13, 14), 8),
}
"""onnx.TensorProto.DataType → bytes of an element; the rest is one byte or less."""


def find_tensors(data: memoryview) -> list[Tensor]:
    """Return where an ONNX file has tensors.

    Raises:
        NotUnderstood: if it is no ONNX file.
    """
    found: list[Tensor] = []
    _walk(data, 0, len(data), "model", "", found, _NESTING)
    return found


def _walk(
    data: memoryview, start: int, end: int, kind: str, path: str, found: list[Tensor], depth: int
) -> None:
    if depth == 0:
        raise NotUnderstood("nested too deeply")
    if kind == "tensor":
        _add_tensor(data, start, end, path, found)
        return
    seen: dict[int, int] = {}
    for field, low, high in _fields(data, start, end):
        if low < 0 or len(found) >= MOST_TENSORS:
            continue
        inner = _WAYS[kind].get(field)
        if inner is not None:
            number = seen[field] = seen.get(field, -1) + 1
            # Tensors of a graph are known by name; nodes often have none, so they are counted.
            place = f"{path}/{field}" if inner == "tensor" else f"{path}/{field}.{number}"
            _walk(data, low, high, inner, place, found, depth - 1)


def _add_tensor(data: memoryview, start: int, end: int, path: str, found: list[Tensor]) -> None:
    name, data_type = "", 0
    places: list[tuple[int, int, int]] = []
    for field, low, high in _fields(data, start, end):
        if field == _DATA_TYPE and low < 0:
            data_type = high
        elif low < 0:
            continue
        elif field == _NAMES["tensor"]:
            name = bytes(data[low : min(high, low + 500)]).decode("utf-8", "replace")
        elif field == _RAW_DATA or field in _PACKED_WIDTHS:
            places.append((field, low, high))
    for field, low, high in places:
        width = _PACKED_WIDTHS.get(field) or _WIDTHS.get(data_type, 1)
        found.append(Tensor(f"{path}:{name}:{field}", low, high - low, width))


def _fields(data: memoryview, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield field number, start and end of what has a length; -1 and the value of what is a number.

    Raises:
        NotUnderstood: if the bytes are no protobuf message.
    """
    at = start
    while at < end:
        tag, at = _number(data, at, end)
        field, form = tag >> 3, tag & 7
        if form == 2:
            size, at = _number(data, at, end)
            if size > end - at:
                raise NotUnderstood("a field is longer than its message")
            yield field, at, at + size
            at += size
        elif form == 0:
            value, at = _number(data, at, end)
            yield field, -1, value
        elif form in (1, 5):
            at += 8 if form == 1 else 4
        else:
            raise NotUnderstood("no protobuf")
    if at != end:
        raise NotUnderstood("a field ends after its message")


def _number(data: memoryview, at: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise NotUnderstood("a number has no end")
