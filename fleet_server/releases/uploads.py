"""What was uploaded: the options, and where the files lie until they are staged."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from fleet_contract.manifest import LeastNumpy
from fleet_contract.names import ModelName, Version
from fleet_server.releases import limits
from fleet_server.releases.gates import feature_schema, metric, metrics, slices
from fleet_server.releases.interface import Interface
from fleet_server.releases.metadata import Metadata, Word
from fleet_server.releases.states import Metric, OutputKind, Recipe

FILES = {
    "model": "model.onnx",
    "calibration": "calibration.npz",
    "golden": "golden.npz",
    "baseline": "baseline.npz",
    "evaluation": "evaluation.npz",
}
"""Field of the form → file in the upload's folder."""

EVALUATION = "evaluation"
"""The file that may be left out; :attr:`Options.evaluated` says whether it was."""

VARIANTS = 8
VARIANT_FILES = {f"variant-{number}": f"variant-{number}.model" for number in range(1, 5)}
"""Models of variants that are not made of the main one: each may be left out."""

ALL_FILES = {**FILES, **VARIANT_FILES}
MODELS = ("model", *VARIANT_FILES)
"""Fields that hold a model; the others hold arrays."""

AGREEMENT = 0.99
"""Least share of golden rows on which the quantised model must name the float model's class."""


GATE_PATTERN = r"^[a-z][A-Za-z0-9:._-]{0,80}\Z"
GateName = Annotated[str, Meta(pattern=GATE_PATTERN)]
Reason = Annotated[str, Meta(pattern=r"^[^\x00-\x1f\x7f-\x9f]{3,500}\Z")]
Approval = Annotated[str, Meta(pattern=r"^[^\x00-\x1f\x7f-\x9f]{0,500}\Z")]
Machine = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_]{1,40}\Z")]


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


class Options(msgspec.Struct, frozen=True):
    """The text fields of an upload, and whether it has evaluation rows.

    ``metric_margin`` is the least gain over production, ``slice_margin`` what a slice may lose at
    most; None: as the gates have it. ``overrides`` are reasons by gate. Nothing above
    ``size_budget_bytes`` ships. ``bench`` are the labels of the bench devices that may time
    the main artifact. ``numpy`` is the oldest that devices may have, for all artifacts.
    """

    model: ModelName
    version: Version
    output_kind: OutputKind = OutputKind.LOGITS
    agreement: Annotated[float, Meta(ge=0.5, le=1)] = AGREEMENT
    metadata: Metadata = Metadata()
    variants: Annotated[list[WantedVariant], Meta(max_length=VARIANTS)] = []
    interface: Interface = Interface()
    size_budget_bytes: Annotated[int, Meta(ge=1, le=limits.MODEL_BYTES)] | None = None
    metric: Metric | None = None
    metric_margin: Annotated[float, Meta(ge=-1e9, le=1e9)] | None = None
    slice_margin: Annotated[float, Meta(ge=0, le=1e9)] | None = None
    overrides: Annotated[dict[GateName, Reason], Meta(max_length=limits.OVERRIDES)] = {}
    approve_schema: Approval = ""
    evaluated: bool = False
    bench: Annotated[dict[Word, Word], Meta(max_length=16)] = {}
    numpy: LeastNumpy = ""

    def relaxed(self) -> dict[str, str]:
        """Return the gates that this upload asks to be easier than they are, each with why."""
        found = dict(self.overrides)
        if self.approve_schema:
            found[feature_schema.NAME] = self.approve_schema
        if self.agreement < AGREEMENT:
            found["parity"] = f"agreement {self.agreement:g}"
        chosen = self.metric or metrics.default(self.output_kind)
        if self.metric_margin is not None and self.metric_margin < metric.default_margin(chosen):
            found.setdefault(metric.NAME, f"metric margin {self.metric_margin:g}")
        # An error has units of its own: no margin is known to be the smaller one.
        own = 0.0 if chosen in metrics.LOWER_IS_BETTER else slices.MARGIN
        if self.slice_margin is not None and self.slice_margin > own:
            found.setdefault(slices.NAME, f"slice margin {self.slice_margin:g}")
        return found


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload whose files are on disk, in ``folder`` below the server's incoming folder.

    ``signature`` is the bundle that came with it; it is looked at on arrival and not kept here, and
    neither are ``variant_digests``: field → SHA-256 of the models that came besides. ``made_of``
    names the uploads in pieces that became its files; they go once it is registered.
    """

    folder: str
    options: Options
    source_digest: str
    source_bytes: int
    signature: bytes = b""
    made_of: tuple[str, ...] = ()
    variant_digests: Mapping[str, str] = field(default_factory=dict)


def file_of(incoming: Path, upload: Upload, name: str) -> Path:
    """Return the path of one of the uploaded files."""
    return incoming / upload.folder / ALL_FILES[name]
