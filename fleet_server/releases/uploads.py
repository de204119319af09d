"""What was uploaded: the options, and where the files lie until they are staged."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from fleet_contract.names import ModelName, Version
from fleet_server.releases import limits
from fleet_server.releases.gates import feature_schema, metric, slices
from fleet_server.releases.interface import Interface
from fleet_server.releases.metadata import Metadata
from fleet_server.releases.states import Metric, OutputKind

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

AGREEMENT = 0.99
"""Least share of golden rows on which the quantised model must name the float model's class."""


GATE_PATTERN = r"^[a-z][A-Za-z0-9:._-]{0,80}\Z"
GateName = Annotated[str, Meta(pattern=GATE_PATTERN)]
Reason = Annotated[str, Meta(min_length=3, max_length=500)]


class Options(msgspec.Struct, frozen=True):
    """The text fields of an upload, and whether it has evaluation rows.

    ``metric_margin`` is the least gain over production, ``slice_margin`` what a slice may lose at
    most; None: as the gates have it. ``overrides`` are reasons by gate. Nothing above
    ``size_budget_bytes`` ships.
    """

    model: ModelName
    version: Version
    output_kind: OutputKind = OutputKind.LOGITS
    agreement: Annotated[float, Meta(ge=0.5, le=1)] = AGREEMENT
    metadata: Metadata = Metadata()
    interface: Interface = Interface()
    size_budget_bytes: Annotated[int, Meta(ge=1, le=limits.MODEL_BYTES)] | None = None
    metric: Metric | None = None
    metric_margin: Annotated[float, Meta(ge=-1e9, le=1e9)] | None = None
    slice_margin: Annotated[float, Meta(ge=0, le=1e9)] | None = None
    overrides: Annotated[dict[GateName, Reason], Meta(max_length=limits.OVERRIDES)] = {}
    approve_schema: Annotated[str, Meta(max_length=500)] = ""
    evaluated: bool = False

    def relaxed(self) -> dict[str, str]:
        """Return the gates that this upload asks to be easier than they are, each with why."""
        found = dict(self.overrides)
        if self.approve_schema:
            found[feature_schema.NAME] = self.approve_schema
        default = metric.default_margin(self.metric) if self.metric is not None else 0.0
        if self.metric_margin is not None and self.metric_margin < default:
            found.setdefault(metric.NAME, f"metric margin {self.metric_margin:g}")
        if self.slice_margin is not None and self.slice_margin > slices.MARGIN:
            found.setdefault(slices.NAME, f"slice margin {self.slice_margin:g}")
        return found


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload whose files are on disk, in ``folder`` below the server's incoming folder.

    ``signature`` is the bundle that came with it; it is looked at on arrival and not kept here.
    ``made_of`` names the uploads in pieces that became its files; they go once it is registered.
    """

    folder: str
    options: Options
    source_digest: str
    source_bytes: int
    signature: bytes = b""
    made_of: tuple[str, ...] = ()


def file_of(incoming: Path, upload: Upload, field: str) -> Path:
    """Return the path of one of the uploaded files."""
    return incoming / upload.folder / FILES[field]
