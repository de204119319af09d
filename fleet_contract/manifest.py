"""The release manifest: everything about a release that a device must know to run it.

A release is immutable: one manifest, one artifact per variant, evidence. Everything else is named
in the manifest by SHA-256 and size; that they exist at all is said by the fleet's TUF repository,
of which each file is a target under its path here. Which variant suits a device is decided here,
so that the server counts the same devices as eligible that will accept it.
"""

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from fleet_contract import codec, limits
from fleet_contract.counts import Count
from fleet_contract.errors import Reason, Refused
from fleet_contract.features import FeatureSchema
from fleet_contract.names import Digest, ModelName, Version
from fleet_contract.sketches.features import FeatureSketches

Size = Annotated[int, Meta(ge=0, le=limits.ARTIFACT_BYTES)]
Shape = Annotated[list[int | None], Meta(max_length=8)]


class Runtime(StrEnum):
    """What executes an artifact."""

    ONNXRUNTIME = "onnxruntime"
    LITERT = "litert"


class FileRef(msgspec.Struct, frozen=True):
    """A file, addressed by its SHA-256."""

    digest: Digest
    size_bytes: Size


class TensorSpec(msgspec.Struct, frozen=True):
    """An input or output: numpy's name of the type, and the shape (None: any, the batch first)."""

    name: Annotated[str, Meta(max_length=200)]
    dtype: Annotated[str, Meta(max_length=20)]
    shape: Shape


LeastNumpy = Annotated[str, Meta(pattern=r"^(?:[1-9][0-9]{0,2}\.[0-9]{1,3})?\Z")]


class Requirements(msgspec.Struct, frozen=True):
    """What a device must offer. Empty or zero fields demand nothing.

    ``opset`` and ``ir_version`` are the artifact's, ``memory_bytes`` was measured at staging,
    ``labels`` must all be the device's own, and its instruction set (``uname -m``, such as
    ``aarch64``) one of ``machines`` unless those are empty. ``numpy`` is the oldest version, such
    as ``2.0``, that the application may prepare inputs with.
    """

    opset: Annotated[int, Meta(ge=0)] = 0
    ir_version: Annotated[int, Meta(ge=0)] = 0
    operators: list[str] = []
    memory_bytes: Annotated[int, Meta(ge=0)] = 0
    labels: dict[str, str] = {}
    machines: Annotated[
        list[Annotated[str, Meta(min_length=1, max_length=40)]], Meta(max_length=16)
    ] = []
    numpy: LeastNumpy = ""


class Variant(msgspec.Struct, frozen=True):
    """One artifact of a release and what it needs; ``precision`` is for people."""

    name: Annotated[str, Meta(max_length=63)]
    runtime: Runtime
    precision: Annotated[str, Meta(max_length=20)]
    artifact: FileRef
    requires: Requirements


class GoldenVectors(msgspec.Struct, frozen=True, omit_defaults=True):
    """Inputs and expected outputs for the device's self-test, and how far it may be off.

    The file is MessagePack of :class:`GoldenFile`. The outputs are those of the staged artifact in
    the server's runtime; bit equality across runtimes is never asked for. ``agreement`` is the
    least share of rows with the same winning class (0 where outputs are no class scores),
    ``largest_difference`` the largest absolute difference allowed in any output element, and
    ``differences`` that of an output by its name: they may have very different ranges. An agent
    that does not know it yet takes the largest for all.
    """

    file: FileRef
    agreement: Annotated[float, Meta(ge=0, le=1)]
    largest_difference: Annotated[float, Meta(ge=0)]
    differences: Annotated[
        dict[Annotated[str, Meta(max_length=200)], Annotated[float, Meta(ge=0)]],
        Meta(max_length=64),
    ] = {}


class TensorData(msgspec.Struct, frozen=True):
    """A tensor in a file: numpy's name of the type, the shape, little-endian C-order bytes."""

    name: str
    dtype: Annotated[str, Meta(max_length=20)]
    shape: list[int]
    data: bytes


class GoldenFile(msgspec.Struct, frozen=True):
    """The content of a golden-vectors file."""

    inputs: list[TensorData]
    outputs: list[TensorData]


class Baseline(msgspec.Struct, frozen=True):
    """What inputs and outputs looked like on the baseline data, on the schema's edges."""

    inputs: FeatureSketches
    outputs: FeatureSketches


class Lineage(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a release comes from: digests of what went in, and the tools' versions.

    What the pusher says of it follows: ``datasets`` maps names to URIs, ``environment_lock`` is the
    SHA-256 of the training's lock file, ``run_id`` names the training run where it was recorded.
    Devices look at none of it; a field that says nothing is left out.
    """

    source: Digest
    calibration: Digest | None
    tools: dict[str, str]
    previous_version: str | None
    dataset_hash: Annotated[str, Meta(max_length=200)] | None = None
    datasets: Annotated[dict[str, Annotated[str, Meta(max_length=1000)]], Meta(max_length=20)] = {}
    environment_lock: Digest | None = None
    git_commit: Annotated[str, Meta(max_length=64)] | None = None
    run_id: Annotated[str, Meta(max_length=64)] | None = None
    imported_from: Annotated[str, Meta(max_length=500)] | None = None


class Manifest(msgspec.Struct, frozen=True):
    """The description of one release: a target of the fleet's TUF repository.

    ``release_counter`` grows with every release of a model and may be raised to revoke.
    ``created_ms`` is in milliseconds since 1970. ``least_agent`` is the oldest wire version that
    an agent must speak. ``states`` maps an input to the output that is its value at the next step;
    the application hands it on.
    """

    model: ModelName
    version: Version
    release_counter: Count
    created_ms: Count
    least_agent: Count
    variants: Annotated[list[Variant], Meta(min_length=1, max_length=32)]
    inputs: Annotated[list[TensorSpec], Meta(min_length=1, max_length=64)]
    outputs: Annotated[list[TensorSpec], Meta(min_length=1, max_length=64)]
    features: FeatureSchema
    golden: GoldenVectors
    baseline: FileRef
    lineage: Lineage
    states: Annotated[dict[str, str], Meta(max_length=64)] = {}


class Capabilities(msgspec.Struct, frozen=True):
    """What a device offers: reported at enrolment and with its birth message.

    ``runtimes`` maps a runtime to its version; a runtime is listed only if it really ran once.
    ``numpy`` is its version, empty from an agent that does not say it.
    """

    runtimes: dict[str, str]
    machine: Annotated[str, Meta(max_length=40)]
    max_opset: Count
    max_ir_version: Count
    memory_bytes: Count
    numpy: Annotated[str, Meta(max_length=40)] = ""


FOLLOWS_HEADER, FOLLOWS = "X-Edgefleet-Follow", "1"
"""What a requester sends that may be led elsewhere for an artifact, with 307."""


def manifest_path(model: str, digest: str) -> str:
    """Return where a manifest lies below the server's artifact root: its path as a TUF target."""
    return f"manifests/{model}/{digest}.json"


def artifact_path(model: str, digest: str) -> str:
    """Return where a file of one of the model's releases lies below the server's artifact root."""
    return f"artifacts/{model}/{digest}"


def read_manifest(data: bytes, *, model: str) -> Manifest:
    """Return the manifest in bytes that the metadata vouches for, if it is for this model.

    That the bytes are those that the directive named (by SHA-256), and that the TUF metadata knows
    them under the path of this model, is checked by the caller.

    Raises:
        Refused: with the reason of the first check that failed.
    """
    manifest = codec.decode_json(data, Manifest, limit_bytes=limits.MANIFEST_BYTES)
    if manifest.model != model:
        raise Refused(Reason.WRONG_AUDIENCE, f"a manifest of {manifest.model}, not {model}")
    return manifest


def choose_variant(
    manifest: Manifest, capabilities: Capabilities, labels: Mapping[str, str]
) -> Variant | None:
    """Return the first variant whose requirements the device meets, None if there is none."""
    return next(
        (variant for variant in manifest.variants if _fits(variant, capabilities, labels)), None
    )


def _fits(variant: Variant, capabilities: Capabilities, labels: Mapping[str, str]) -> bool:
    needs = variant.requires
    return (
        variant.runtime.value in capabilities.runtimes
        and needs.opset <= capabilities.max_opset
        and needs.ir_version <= capabilities.max_ir_version
        and needs.memory_bytes <= capabilities.memory_bytes
        and (not needs.machines or capabilities.machine in needs.machines)
        and all(labels.get(key) == value for key, value in needs.labels.items())
        and _numpy(needs.numpy) <= _numpy(capabilities.numpy)
    )


def _numpy(version: str) -> tuple[int, ...]:
    """Return the major and the minor number, none of a version that says neither."""
    found = re.match(r"([0-9]{1,9})\.([0-9]{1,9})", version)
    return tuple(int(number) for number in found.groups()) if found else ()
