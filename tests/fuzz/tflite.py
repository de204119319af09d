"""The reader of TFLite files, as the examination sees them before any runtime does."""

from __future__ import annotations

from fleet_server.releases.litert import examination
from tests import toy_tflite


def examine(data: bytes) -> object:
    return examination.examine(data)


def seeds() -> list[bytes]:
    return [toy_tflite.classifier(), toy_tflite.classifier(hidden=8)]
