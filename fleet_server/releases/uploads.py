"""What was uploaded: the options, and where the files lie until they are staged."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from fleet_contract.names import ModelName, Version
from fleet_server.releases.metadata import Metadata
from fleet_server.releases.states import OutputKind

FILES = {
    "model": "model.onnx",
    "calibration": "calibration.npz",
    "golden": "golden.npz",
    "baseline": "baseline.npz",
}
"""Field of the form → file in the upload's folder."""

AGREEMENT = 0.99
"""Least share of golden rows on which the quantised model must name the float model's class."""


class Options(msgspec.Struct, frozen=True):
    """The text fields of an upload."""

    model: ModelName
    version: Version
    output_kind: OutputKind = OutputKind.LOGITS
    agreement: Annotated[float, Meta(ge=0.5, le=1)] = AGREEMENT
    metadata: Metadata = Metadata()


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload whose files are on disk, in ``folder`` below the server's incoming folder.

    ``signature`` is the bundle that came with it; it is looked at on arrival and not kept here.
    """

    folder: str
    options: Options
    source_digest: str
    source_bytes: int
    signature: bytes = b""


def file_of(incoming: Path, upload: Upload, field: str) -> Path:
    """Return the path of one of the uploaded files."""
    return incoming / upload.folder / FILES[field]
