"""What the steps of staging work on: the job, its files, and what one step hands to the next."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fleet_contract.features import FeatureSchema
from fleet_contract.manifest import Baseline, FileRef, Manifest
from fleet_server.provenance.statement import Attester
from fleet_server.releases import (
    limits,
)
from fleet_server.releases.candidates import Found, Trial
from fleet_server.releases.evaluation import Labelled
from fleet_server.releases.examples import Rows
from fleet_server.releases.gates.given import SchemaChange
from fleet_server.releases.laboratory.laboratory import Laboratory
from fleet_server.releases.laboratory.tasks import Examined
from fleet_server.releases.sealing import Sealed
from fleet_server.releases.states import GateResult, Step
from fleet_server.releases.store import Store
from fleet_server.releases.timing import Benches, NoBenches
from fleet_server.releases.uploads import Upload, file_of
from fleet_server.releases.variants import Made


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be staged, and with what. ``previous`` is the model's newest staged release,
    ``previous_card`` the digest of its card, ``signer`` whoever signed the upload; ``invocation``
    names the run in the statement of its origin; ``on_try`` is told what the search tries."""

    upload: Upload
    counter: int
    created_ms: int
    previous: Manifest | None
    incoming: Path
    store: Store
    laboratory: Laboratory
    vouch: Callable[[str, FileRef, list[FileRef]], bool]
    monotonic_ms: Callable[[], int]
    attester: Attester
    invocation: str
    previous_card: str | None = None
    signer: str = ""
    on_try: Callable[[str], None] = lambda _: None
    production: Manifest | None = None
    """What the gates compare with; None: there is none yet."""
    required_metadata: Sequence[str] = ()
    benches: Benches = field(default_factory=NoBenches)


@dataclass(slots=True)
class Bench:
    """What the steps hand on to each other."""

    job: Job
    examined: Examined = field(init=False)
    calibration: Rows = field(init=False)
    golden: Rows = field(init=False)
    memory_bytes: int = field(init=False)
    baseline_inputs: Rows = field(init=False)
    baseline_outputs: Rows = field(init=False)
    reference: Rows | None = None
    labelled: Labelled | None = None
    float_outputs: Rows = field(init=False)
    schema: SchemaChange = field(init=False)
    gates: list[GateResult] = field(default_factory=list)
    trial: Trial = field(init=False)
    found: Found = field(init=False)
    variants: list[Made] = field(default_factory=list)
    features: FeatureSchema = field(init=False)
    baseline: Baseline = field(init=False)
    sealed: Sealed = field(init=False)
    steps: list[Step] = field(default_factory=list)

    def file(self, name: str) -> Path:
        """Return one of the uploaded files. Children work elsewhere, so what they are told must be
        absolute."""
        return file_of(self.job.incoming, self.job.upload, name).resolve()

    def digest(self, name: str) -> str:
        """Return the SHA-256 of one of the uploaded files."""
        with self.file(name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @property
    def folder(self) -> Path:
        """The only folder that children may write to."""
        return self.file("model").with_name(limits.TEMPORARY_FILES)

    @property
    def float_model(self) -> Path:
        """The model as it goes on: the upload, or what the examination made of it."""
        model = self.file("model")
        return model.with_name("rewritten.onnx") if self.examined.changed_bytes else model

    @property
    def shipped(self) -> Path:
        """What ships, where no child can write."""
        return self.file("model").with_name("shipped.onnx")
