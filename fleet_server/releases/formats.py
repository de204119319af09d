"""Tells which runtime a model file is for, by its content: names and endings are the client's."""

from fleet_contract.manifest import Runtime

_IDENTIFIER = b"TFL3"
"""Bytes 4 to 8 of a TFLite file: a flatbuffer's file identifier."""


def runtime_of(data: bytes) -> Runtime:
    """Return what would run a file that begins with these bytes; ONNX has no mark of its own."""
    return Runtime.LITERT if data[4:8] == _IDENTIFIER else Runtime.ONNXRUNTIME
