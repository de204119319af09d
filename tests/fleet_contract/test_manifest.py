"""Guards that server and device choose the same variant, and that a manifest is whole."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from fleet_contract import codec, limits
from fleet_contract.errors import Reason, Refused
from fleet_contract.features import FeatureSchema
from fleet_contract.manifest import (
    Capabilities,
    FileRef,
    GoldenVectors,
    Lineage,
    Manifest,
    Requirements,
    Runtime,
    TensorSpec,
    Variant,
    artifact_path,
    choose_variant,
    manifest_path,
    read_manifest,
)

FILE = FileRef("ab" * 32, 1_000)
DEVICE = Capabilities({"onnxruntime": "1.31.1"}, "aarch64", 21, 10, 1_000_000, "2.10.0rc1")


def variant(name: str, **needs: Any) -> Variant:
    runtime = needs.pop("runtime", Runtime.ONNXRUNTIME)
    return Variant(name, runtime, "int8", FILE, Requirements(**needs))


@pytest.fixture(scope="module")
def manifest(schema: FeatureSchema) -> Manifest:
    return Manifest(
        model="digits",
        version="1.0.0",
        release_counter=1,
        created_ms=1,
        least_agent=1,
        variants=[variant("int8")],
        inputs=[TensorSpec("image", "float32", [None, 64])],
        outputs=[TensorSpec("scores", "float32", [None, 10])],
        features=schema,
        golden=GoldenVectors(FILE, 0.98, 0.5),
        baseline=FILE,
        lineage=Lineage("cd" * 32, None, {"onnxruntime": "1.31.1"}, None),
    )


@pytest.mark.parametrize(
    ("needs", "labels", "fits"),
    [
        ({}, {}, True),
        ({"opset": 21, "ir_version": 10, "memory_bytes": 1_000_000}, {}, True),
        ({"opset": 22}, {}, False),
        ({"ir_version": 11}, {}, False),
        ({"memory_bytes": 1_000_001}, {}, False),
        ({"runtime": Runtime.LITERT}, {}, False),
        ({"labels": {"hardware": "rpi5"}}, {"hardware": "rpi5", "site": "lab"}, True),
        ({"labels": {"hardware": "rpi5"}}, {"hardware": "rpi4"}, False),
        ({"labels": {"hardware": "rpi5", "site": "lab"}}, {"hardware": "rpi5"}, False),
        ({"labels": {"hardware": ""}}, {}, False),
        ({"machines": ["armv7l", "aarch64"]}, {}, True),
        ({"machines": ["x86_64"]}, {}, False),
        ({"numpy": "1.26"}, {}, True),
        ({"numpy": "2.10"}, {}, True),
        ({"numpy": "2.11"}, {}, False),
        ({"numpy": "3.0"}, {}, False),
    ],
    ids=str,
)
def test_variant_that_a_device_cannot_run_is_not_chosen(
    manifest: Manifest, needs: dict[str, Any], labels: dict[str, str], fits: bool
) -> None:
    only = msgspec.structs.replace(manifest, variants=[variant("only", **needs)])
    chosen = choose_variant(only, DEVICE, labels)
    assert (chosen is not None) is fits


def test_manifest_from_before_machines_and_numpy_were_known_is_read(manifest: Manifest) -> None:
    data = codec.encode_json(manifest).replace(b',"machines":[],"numpy":""', b"")
    assert b"machines" not in data and b"numpy" not in data
    assert read_manifest(data, model="digits") == manifest


@pytest.mark.parametrize("said", ["", "unknown", "2"])
def test_device_that_does_not_say_its_numpy(manifest: Manifest, said: str) -> None:
    device = msgspec.structs.replace(DEVICE, numpy=said)
    asking = msgspec.structs.replace(manifest, variants=[variant("only", numpy="1.26")])
    assert choose_variant(asking, device, {}) is None
    assert choose_variant(manifest, device, {}) is not None


@pytest.mark.parametrize("asked", ["2", "2.0.1", ">=2.0", "2.0\n", "0.1", "x"])
def test_numpy_that_is_no_version(manifest: Manifest, asked: str) -> None:
    asking = msgspec.structs.replace(manifest, variants=[variant("only", numpy=asked)])
    assert refusal(codec.encode_json(asking)) is Reason.MALFORMED


def test_first_variant_that_fits_is_chosen(manifest: Manifest) -> None:
    variants = [variant("large", memory_bytes=10**9), variant("small"), variant("smaller")]
    several = msgspec.structs.replace(manifest, variants=variants)
    chosen = choose_variant(several, DEVICE, {})
    assert chosen is not None
    assert chosen.name == "small"


def test_device_without_a_working_runtime_gets_nothing(manifest: Manifest) -> None:
    assert choose_variant(manifest, msgspec.structs.replace(DEVICE, runtimes={}), {}) is None


def test_paths_hold_nothing_but_the_model_and_the_digest() -> None:
    assert manifest_path("digits", "ab" * 32) == f"manifests/digits/{'ab' * 32}.json"
    assert artifact_path("digits", "ab" * 32) == f"artifacts/digits/{'ab' * 32}"


def written(manifest: Manifest, **changes: Any) -> bytes:
    return codec.encode_json(msgspec.structs.replace(manifest, **changes))


def refusal(data: bytes) -> Reason:
    with pytest.raises(Refused) as caught:
        read_manifest(data, model="digits")
    return caught.value.reason


def test_round_trip(manifest: Manifest) -> None:
    assert read_manifest(written(manifest), model="digits") == manifest


def test_manifest_of_another_model(manifest: Manifest) -> None:
    assert refusal(written(manifest, model="faces")) is Reason.WRONG_AUDIENCE


@pytest.mark.parametrize(
    "changes",
    [
        {"variants": []},
        {"inputs": []},
        {"version": "latest"},
        {"model": "../digits"},
        {"release_counter": -1},
        {"baseline": FileRef("AB" * 32, 1)},
        {"baseline": FileRef("ab" * 31 + "/.", 1)},
        {"baseline": FileRef("ab" * 32, limits.ARTIFACT_BYTES + 1)},
        {"golden": GoldenVectors(FILE, 1.5, 0.0)},
    ],
    ids=str,
)
def test_malformed_manifest(manifest: Manifest, changes: dict[str, Any]) -> None:
    assert refusal(written(manifest, **changes)) is Reason.MALFORMED


def test_endless_manifest_is_refused(manifest: Manifest) -> None:
    assert refusal(written(manifest) + b" " * limits.MANIFEST_BYTES) is Reason.TOO_LARGE
