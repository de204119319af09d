"""What was uploaded: the options, and where the files lie until they are staged."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from fleet_contract.names import ModelName, Version
from fleet_server.releases import limits
from fleet_server.releases.states import OutputKind, Recipe

FILES = {
    "model": "model.onnx",
    "calibration": "calibration.npz",
    "golden": "golden.npz",
    "baseline": "baseline.npz",
}
"""Field of the form → file in the upload's folder."""

VARIANTS = 8
VARIANT_FILES = {f"variant-{number}": f"variant-{number}.model" for number in range(1, 5)}
"""Models of variants that are not made of the main one: each may be left out."""

AGREEMENT = 0.99
"""Least share of golden rows on which the quantised model must name the float model's class."""


WORD_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,62}\Z"
# Nothing that a terminal or a log would take for a command.
CLASS_PATTERN = r"^[^\x00-\x1f\x7f-\x9f]{1,80}\Z"
Word = Annotated[str, Meta(pattern=WORD_PATTERN)]
Machine = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_]{1,40}\Z")]
ClassName = Annotated[str, Meta(pattern=CLASS_PATTERN)]


class WantedVariant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A further artifact of the release, and which devices it is for.

    ``recipe`` says how it is made; without one it is searched for. ``file`` is the field of the
    form that holds its own model, empty for the release's.
    """

    name: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,30}\Z")]
    machines: Annotated[list[Machine], Meta(max_length=16)] = []
    labels: Annotated[dict[Word, Word], Meta(max_length=16)] = {}
    memory_bytes: Annotated[int, Meta(ge=0, le=1 << 50)] = 0
    recipe: Recipe | None = None
    file: str = ""


class Metadata(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What else the pusher says. ``classes`` names the columns of the first output in order;
    ``notes`` are for people; ``sources`` say where data and code lie, for the compliance report.
    """

    classes: Annotated[list[ClassName], Meta(max_length=limits.CLASSES)] = []
    notes: Annotated[dict[Word, Annotated[str, Meta(max_length=2000)]], Meta(max_length=50)] = {}
    sources: Annotated[dict[Word, Annotated[str, Meta(max_length=1000)]], Meta(max_length=20)] = {}


class Options(msgspec.Struct, frozen=True):
    """The text fields of an upload."""

    model: ModelName
    version: Version
    output_kind: OutputKind = OutputKind.LOGITS
    agreement: Annotated[float, Meta(ge=0.5, le=1)] = AGREEMENT
    metadata: Metadata = Metadata()
    variants: Annotated[list[WantedVariant], Meta(max_length=VARIANTS)] = []


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload whose files are on disk, in ``folder`` below the server's incoming folder.

    ``signature`` is the bundle that came with it; it is looked at on arrival and not kept here,
    and neither are ``variant_digests``: field → SHA-256 of the models that came besides.
    """

    folder: str
    options: Options
    source_digest: str
    source_bytes: int
    signature: bytes = b""
    variant_digests: Mapping[str, str] = field(default_factory=dict)


def file_of(incoming: Path, upload: Upload, name: str) -> Path:
    """Return the path of one of the uploaded files."""
    return incoming / upload.folder / {**FILES, **VARIANT_FILES}[name]
