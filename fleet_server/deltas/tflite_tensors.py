"""Finds tensors in a TFLite file: the constant buffers, and how wide their elements are.

A buffer that several tensors share, or that none does, counts once or as bytes.
"""

from fleet_server.deltas.tensors import NotUnderstood, Tensor
from fleet_server.flatbuffer import Flatbuffer, OutOfBounds

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
    try:
        return _find(Flatbuffer(data))
    except OutOfBounds as error:
        raise NotUnderstood(str(error)) from error


def _find(reader: Flatbuffer) -> list[Tensor]:
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


def _buffers_of_tensors(reader: Flatbuffer, model: int) -> dict[int, tuple[str, int]]:
    known: dict[int, tuple[str, int]] = {}
    for subgraph in reader.tables(model, _MODEL_SUBGRAPHS):
        for tensor in reader.tables(subgraph, _SUBGRAPH_TENSORS):
            number = reader.scalar(tensor, _TENSOR_BUFFER, "<I")
            text = reader.name(tensor, _TENSOR_NAME)
            width = _WIDTHS.get(reader.scalar(tensor, _TENSOR_TYPE, "<b"), 1)
            known.setdefault(number, (text, width))
    return known
