"""Seals a release: golden vectors, baseline and manifest, written to the store and vouched for.

Runs after every gate has passed; nothing is in the store before. The manifest is written after what
it names, and vouched for last: devices believe in nothing that is not there.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from fleet_contract import WIRE_VERSION, codec
from fleet_contract.features import FeatureSchema
from fleet_contract.manifest import (
    Baseline,
    FileRef,
    GoldenFile,
    GoldenVectors,
    Lineage,
    Manifest,
    Requirements,
    Runtime,
    TensorData,
    Variant,
    artifact_path,
    manifest_path,
)
from fleet_contract.sketches.features import FeatureBank, FeatureSketches
from fleet_server.provenance import statement
from fleet_server.provenance.statement import Attester
from fleet_server.releases import limits, metadata, parity
from fleet_server.releases.examples import Rows, count
from fleet_server.releases.interface import Interface
from fleet_server.releases.laboratory.tasks import Built, Examined
from fleet_server.releases.states import OutputKind, Recipe, Refusal
from fleet_server.releases.store import Store
from fleet_server.releases.uploads import Options
from fleet_server.releases.variants import Made

BATCH_ROWS = 1024
PIECE_BYTES = 1024 * 1024
_PRECISIONS = {Recipe.FLOAT: "float32", Recipe.FLOAT16: "float16", Recipe.WEIGHTS16: "float16"}


@dataclass(frozen=True, slots=True)
class Content:
    """What goes into a release. ``golden`` and ``golden_outputs`` are rows for devices,
    ``memory_bytes`` is what a device must have to run it."""

    artifact: Path
    recipe: Recipe
    built: Built
    memory_bytes: int
    examined: Examined
    features: FeatureSchema
    baseline: Baseline
    golden: Rows
    golden_outputs: Rows
    inputs: Mapping[str, str]
    """What it is made of: name → SHA-256, by the names of ``statement.DEPENDENCIES``."""
    variants: Sequence[Made] = ()
    """The artifacts for some devices; the main one is for all others."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """A release in the store. ``digest`` is that of the manifest's bytes; ``vouched`` says whether
    devices can know of it yet. ``statement`` is the digest of the sealed statement of its origin,
    ``card`` that of the model card.
    """

    digest: str
    manifest: Manifest
    vouched: bool
    statement: str
    card: str


def precision(recipe: Recipe) -> str:
    """Return what the artifact of a recipe is called, for people."""
    return _PRECISIONS.get(recipe, "int8")


def sketch(schema: FeatureSchema, inputs: Rows, outputs: Rows) -> Baseline:
    """Return the sketches of the baseline rows and of the quantised model's outputs on them."""
    return Baseline(
        _sketch(FeatureBank(schema.inputs), inputs), _sketch(FeatureBank(schema.outputs), outputs)
    )


def check_size(schema: FeatureSchema, baseline: Baseline) -> None:
    """Check that devices can read the manifest that these will be in, and the server, too.

    Raises:
        Refusal: ``too_many_features`` if not.
    """
    size_bytes = max(len(codec.encode_json(schema)), len(codec.encode_msgpack(baseline)))
    if size_bytes > limits.FEATURES_BYTES:
        raise Refusal(
            "features",
            "too_many_features",
            f"What is to be measured of the model takes {size_bytes} bytes to describe.",
            "Join inputs and outputs into fewer tensors, or give the classes shorter names.",
            figure=size_bytes,
            bound=limits.FEATURES_BYTES,
        )


def golden_rows(inputs: Rows, outputs: Rows) -> tuple[Rows, Rows]:
    """Return the first golden rows with their outputs: as many as devices are sent."""
    row_bytes = sum(a[:1].nbytes for side in (inputs, outputs) for a in side.values())
    rows = max(1, min(limits.GOLDEN_ROWS, limits.GOLDEN_BYTES // max(row_bytes, 1)))
    return (
        {name: array[:rows] for name, array in inputs.items()},
        {name: array[:rows] for name, array in outputs.items()},
    )


def seal(
    content: Content,
    options: Options,
    *,
    counter: int,
    created_ms: int,
    invocation: str,
    previous_version: str | None,
    store: Store,
    attester: Attester,
    describe: Callable[[Manifest, str, str], bytes],
    vouch: Callable[[str, FileRef, list[FileRef]], bool],
) -> Sealed:
    """Write a release to the store; the same content gives the same digests, however often.

    The statement of its origin is in the store before anybody vouches for it; ``invocation`` names
    the run in it. ``describe`` takes the manifest, its digest and that of the statement, and
    returns the model card. ``vouch`` takes the model, its manifest and the files that the manifest
    names, and says whether all signatures could be made.
    """
    model = options.model
    artifact = store.put_artifact(model, _pieces(content.artifact))
    others = [
        Variant(
            name=item.wanted.name,
            runtime=item.found.built.runtime,
            precision=precision(item.found.recipe),
            artifact=store.put_artifact(model, _pieces(item.found.artifact)),
            requires=item.requirements(options.numpy),
        )
        for item in content.variants
    ]
    tools = _tools(content)
    disagreement, apart = _apart(content, options.output_kind)
    tolerances = {
        name: parity.device_tolerance(array) + apart[name]
        for name, array in content.golden_outputs.items()
    }
    vectors = GoldenFile(_tensors(content.golden), _tensors(content.golden_outputs))
    golden = store.put_artifact(model, [codec.encode_msgpack(vectors)])
    baseline = store.put_artifact(model, [codec.encode_msgpack(content.baseline)])
    said = options.metadata
    scores = options.output_kind is not OutputKind.VALUES
    manifest = Manifest(
        model=model,
        version=options.version,
        release_counter=counter,
        created_ms=created_ms,
        least_agent=WIRE_VERSION,
        variants=[
            *others,
            Variant(
                name=precision(content.recipe),
                runtime=content.built.runtime,
                precision=precision(content.recipe),
                artifact=artifact,
                requires=Requirements(
                    opset=content.built.opset,
                    ir_version=content.built.ir_version,
                    operators=content.built.operators,
                    memory_bytes=content.memory_bytes,
                    numpy=options.numpy,
                ),
            ),
        ],
        inputs=content.examined.inputs,
        outputs=content.examined.outputs,
        features=content.features,
        golden=GoldenVectors(
            file=golden,
            agreement=max(0.0, parity.DEVICE_AGREEMENT - disagreement) if scores else 0.0,
            largest_difference=max(tolerances.values()),
            differences=tolerances if len(tolerances) > 1 else {},
        ),
        baseline=baseline,
        lineage=Lineage(
            source=content.inputs["model"],
            calibration=content.inputs["calibration"],
            tools=tools,
            previous_version=previous_version,
            dataset_hash=said.dataset_hash,
            datasets=said.datasets,
            environment_lock=said.environment_lock,
            git_commit=said.git_commit,
            run_id=said.run_id,
            imported_from=said.imported_from,
        ),
        states=dict(options.interface.states),
    )
    sealed = store.put_manifest(model, codec.encode_json(manifest))
    stated = store.put_provenance(
        model,
        statement.seal(
            statement.Run(
                inputs=content.inputs,
                outputs=outputs(manifest, sealed.digest),
                parameters={
                    "model": model,
                    "version": options.version,
                    "output_kind": options.output_kind.value,
                    "agreement": options.agreement,
                    "recipe": content.recipe.value,
                    **metadata.stated(said),
                    **_said(options),
                },
                tools={"edgefleet": version("edgefleet"), **tools},
                invocation=invocation,
                started_ms=created_ms,
            ),
            attester,
        ),
    )
    card = store.put_card(model, describe(manifest, sealed.digest, stated.digest))
    vouched = vouch(
        model, sealed, [*(item.artifact for item in others), artifact, golden, baseline]
    )
    return Sealed(sealed.digest, manifest, vouched, stated.digest, card.digest)


def _said(options: Options) -> dict[str, str | float]:
    """Return the options that few uploads have."""
    said: dict[str, str | float] = {}
    if options.interface != Interface():
        said["interface"] = codec.encode_json(options.interface).decode()
    if options.size_budget_bytes is not None:
        said["size_budget_bytes"] = options.size_budget_bytes
    return said


def outputs(manifest: Manifest, digest: str) -> dict[str, str]:
    """Return the files of a release: path in the store → SHA-256."""
    model = manifest.model
    files = [item.artifact for item in manifest.variants]
    found = {artifact_path(model, file.digest): file.digest for file in files}
    for file in (manifest.golden.file, manifest.baseline):
        found[artifact_path(model, file.digest)] = file.digest
    return {**found, manifest_path(model, digest): digest}


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield piece


def _apart(content: Content, kind: OutputKind) -> tuple[float, dict[str, float]]:
    """Return how far the variants are from the main artifact on the rows that devices get: the
    share of rows with another class, and the largest difference of each output.

    One golden file serves all of them; what they differ by as they were measured is not a fault.
    """
    outputs, rows = content.examined.outputs, count(content.golden)
    disagreement, apart = 0.0, dict.fromkeys(content.golden_outputs, 0.0)
    for item in content.variants:
        theirs = {name: array[:rows] for name, array in item.found.golden_outputs.items()}
        found = parity.compare(content.golden_outputs, theirs, outputs, kind)
        for name, difference in parity.differences(content.golden_outputs, theirs).items():
            apart[name] = max(apart[name], difference)
        disagreement = max(
            disagreement, 1.0 - (1.0 if found.agreement is None else found.agreement)
        )
    return disagreement, apart


def _tools(content: Content) -> dict[str, str]:
    tools = {
        "numpy": np.__version__,
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
    }
    built = [content.built, *(item.found.built for item in content.variants)]
    if any(item.runtime is Runtime.LITERT for item in built):
        for package in ("ai-edge-litert", "ai-edge-quantizer"):
            with suppress(PackageNotFoundError):  # the quantiser may be left out
                tools[package] = version(package)
    return tools


def _sketch(bank: FeatureBank, rows: Rows) -> FeatureSketches:
    for start in range(0, count(rows), BATCH_ROWS):
        bank.update({name: array[start : start + BATCH_ROWS] for name, array in rows.items()})
    return bank.sketches()


def _tensors(rows: Rows) -> list[TensorData]:
    return [
        TensorData(
            name,
            array.dtype.name,
            list(array.shape),
            array.astype(array.dtype.newbyteorder("<")).tobytes(),
        )
        for name, array in rows.items()
    ]
