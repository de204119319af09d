"""Finds tensors in a TFLite file: the constant buffers, and how wide their elements are.

Reads the flatbuffer's tables by hand, bounded: the generated reader trusts every offset. A buffer
that several tensors share, or that none does, counts once or as bytes.
"""

import struct

from fleet_server.deltas.tensors import MOST_TENSORS, NotUnderstood, Tensor

IDENTIFIER = b"TFL3"
# Places of fields in the tables of the TFLite schema, version 3.
_MODEL_SUBGRAPHS, _MODEL_BUFFERS = 2, 4
_SUBGRAPH_TENSORS = 0
_TENSOR_TYPE, _TENSOR_BUFFER, _TENSOR_NAME = 1, 2, 3
_BUFFER_DATA = 0
_WIDTHS = {0: 4, 1: 2, 2: 4, 4: 8, 7: 2, 8: 4, 10: 8, 11: 8, 12: 8, 15: 4, 16: 2}
"""TensorType → bytes of an element; a complex number's halves are read one by one."""


def find_tensors(data: memoryview) -> list[Tensor]:
    """Return where a TFLite file has the content of tensors.

    Raises:
        NotUnderstood: if it is no TFLite file.
    """
    if bytes(data[4:8]) != IDENTIFIER:
        raise NotUnderstood("no TFLite file")
    reader = _Reader(data)
    model = reader.follow(0)
    known = _buffers_of_tensors(reader, model)
    found = []
    for number, table in enumerate(reader.tables(model, _MODEL_BUFFERS)):
        place = reader.vector(table, _BUFFER_DATA)
        if place is not None:
            start, size = place
            name, width = known.get(number, ("", 1))
            # Exporters number tensors anew: without a name the position has to do.
            found.append(Tensor(name or f"#{number}", start, size, width))
    return found


def _buffers_of_tensors(reader: "_Reader", model: int) -> dict[int, tuple[str, int]]:
    known: dict[int, tuple[str, int]] = {}
    for subgraph in reader.tables(model, _MODEL_SUBGRAPHS):
        for tensor in reader.tables(subgraph, _SUBGRAPH_TENSORS):
            number = reader.scalar(tensor, _TENSOR_BUFFER, "<I")
            name = reader.vector(tensor, _TENSOR_NAME)
            text = "" if name is None else reader.text(name[0], min(name[1], 500))
            width = _WIDTHS.get(reader.scalar(tensor, _TENSOR_TYPE, "<b"), 1)
            known.setdefault(number, (text, width))
    return known


class _Reader:
    """A flatbuffer whose offsets are checked before they are followed."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._left = 8 * MOST_TENSORS

    def follow(self, at: int) -> int:
        """Return where an offset leads to."""
        target = at + self._unpack("<I", at)
        self._check(target, 4)
        return target

    def tables(self, table: int, field: int) -> list[int]:
        """Return the tables of a vector of tables, none if the field is absent."""
        at = self._field(table, field)
        if at is None:
            return []
        vector = self.follow(at)
        count = self._unpack("<I", vector)
        self._left -= count
        if self._left < 0:
            raise NotUnderstood("too many tables")
        return [self.follow(vector + 4 + 4 * number) for number in range(count)]

    def vector(self, table: int, field: int) -> tuple[int, int] | None:
        """Return start and size of a vector of bytes, None if it is absent or empty."""
        at = self._field(table, field)
        if at is None:
            return None
        vector = self.follow(at)
        size = self._unpack("<I", vector)
        self._check(vector + 4, size)
        return (vector + 4, size) if size else None

    def scalar(self, table: int, field: int, form: str) -> int:
        """Return a number, 0 if it is absent."""
        at = self._field(table, field)
        return 0 if at is None else self._unpack(form, at)

    def text(self, start: int, size: int) -> str:
        """Return a name."""
        return bytes(self._data[start : start + size]).decode("utf-8", "replace")

    def _field(self, table: int, field: int) -> int | None:
        known = table - self._unpack("<i", table)
        entry = 4 + 2 * field
        if entry + 2 > self._unpack("<H", known):
            return None
        offset = self._unpack("<H", known + entry)
        return table + offset if offset else None

    def _unpack(self, form: str, at: int) -> int:
        self._check(at, struct.calcsize(form))
        value: int = struct.unpack_from(form, self._data, at)[0]
        return value

    def _check(self, at: int, size: int) -> None:
        if at < 0 or at + size > len(self._data):
            raise NotUnderstood("an offset leads out of the file")
