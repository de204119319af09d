"""Seals a release: golden vectors, baseline and manifest, written to the store and vouched for.

Runs after every gate has passed; nothing is in the store before. The manifest is written after what
it names, and vouched for last: devices believe in nothing that is not there.
"""

from collections.abc import Callable
from dataclasses import dataclass

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
)
from fleet_contract.sketches.features import FeatureBank, FeatureSketches
from fleet_server.releases import limits, parity
from fleet_server.releases.examination import Examined
from fleet_server.releases.examples import Rows, count
from fleet_server.releases.states import OutputKind
from fleet_server.releases.store import Store
from fleet_server.releases.uploads import Options

BATCH_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Content:
    """What goes into a release. ``golden`` and ``golden_outputs`` are rows for devices."""

    artifact: bytes
    examined: Examined
    features: FeatureSchema
    baseline: Baseline
    golden: Rows
    golden_outputs: Rows
    source_digest: str
    calibration_digest: str


@dataclass(frozen=True, slots=True)
class Sealed:
    """A release in the store. ``digest`` is that of the manifest's bytes; ``vouched`` says whether
    devices can know of it yet."""

    digest: str
    manifest: Manifest
    vouched: bool


def sketch(schema: FeatureSchema, inputs: Rows, outputs: Rows) -> Baseline:
    """Return the sketches of the baseline rows and of the quantised model's outputs on them."""
    return Baseline(
        _sketch(FeatureBank(schema.inputs), inputs), _sketch(FeatureBank(schema.outputs), outputs)
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
    previous_version: str | None,
    store: Store,
    vouch: Callable[[str, FileRef, list[FileRef]], bool],
) -> Sealed:
    """Write a release to the store; the same content gives the same digests, however often.

    ``vouch`` takes the model, its manifest and the files that the manifest names, and says whether
    all signatures could be made.
    """
    model = options.model
    artifact = store.put_artifact(model, [content.artifact])
    vectors = GoldenFile(_tensors(content.golden), _tensors(content.golden_outputs))
    golden = store.put_artifact(model, [codec.encode_msgpack(vectors)])
    baseline = store.put_artifact(model, [codec.encode_msgpack(content.baseline)])
    quantised = onnx.ModelProto.FromString(content.artifact)
    opset = max(item.version for item in quantised.opset_import if item.domain in {"", "ai.onnx"})
    scores = options.output_kind is not OutputKind.VALUES
    manifest = Manifest(
        model=model,
        version=options.version,
        release_counter=counter,
        created_ms=created_ms,
        least_agent=WIRE_VERSION,
        variants=[
            Variant(
                name="int8",
                runtime=Runtime.ONNXRUNTIME,
                precision="int8",
                artifact=artifact,
                requires=Requirements(
                    opset=opset,
                    ir_version=quantised.ir_version,
                    operators=sorted({node.op_type for node in quantised.graph.node}),
                ),
            )
        ],
        inputs=content.examined.inputs,
        outputs=content.examined.outputs,
        features=content.features,
        golden=GoldenVectors(
            file=golden,
            agreement=parity.DEVICE_AGREEMENT if scores else 0.0,
            largest_difference=parity.device_tolerance(content.golden_outputs),
        ),
        baseline=baseline,
        lineage=Lineage(
            source=content.source_digest,
            calibration=content.calibration_digest,
            tools={"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__},
            previous_version=previous_version,
        ),
    )
    sealed = store.put_manifest(model, codec.encode_json(manifest))
    vouched = vouch(model, sealed, [artifact, golden, baseline])
    return Sealed(sealed.digest, manifest, vouched)


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
