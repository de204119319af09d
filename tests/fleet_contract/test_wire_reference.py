"""Guards docs/reference/wire.md from falling behind the contract."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from fleet_contract import enrolment, manifest
from fleet_contract.errors import Reason
from fleet_contract.features import CategoricalFeature, NumericFeature, Reduction, Source
from fleet_contract.messages.bench import BenchPoll, BenchResult, Timed
from fleet_contract.messages.presence import Presence, Seen
from fleet_contract.messages.progress import ModelProgress, Phase, Progress, Refusal
from fleet_contract.messages.report import Ack, Pairs, Report, Window, WindowAck
from fleet_contract.sketches.latency import BOUNDS_US, LatencySketch
from fleet_contract.sketches.numeric import NumericSketch
from fleet_contract.topics import DeviceChannel
from fleet_contract.trust import keyset
from fleet_contract.trust.bench import BenchJob, Entrant
from fleet_contract.trust.directive import (
    Activation,
    Arm,
    Assignment,
    Directive,
    ReleaseRef,
    Starts,
    Stop,
)

HERE = Path(__file__).parent
TEXT = (HERE.parents[1] / "docs" / "reference" / "wire.md").read_text(encoding="utf-8")
WORDS = set(re.findall(r"[A-Za-z0-9_]+", TEXT))
STRUCTS = [
    *(Ack, Arm, Assignment, CategoricalFeature, Directive, LatencySketch, ModelProgress),
    *(NumericFeature, NumericSketch, Pairs, Presence, Progress, Refusal, ReleaseRef, Report),
    *(
        Source,
        Stop,
        Window,
        WindowAck,
        keyset.Keyset,
        keyset.PublicKey,
        manifest.Capabilities,
        Seen,
    ),
    *(manifest.FileRef, manifest.GoldenVectors, manifest.Lineage, manifest.Manifest),
    *(manifest.Requirements, manifest.TensorData, manifest.TensorSpec, manifest.Variant),
    *(BenchJob, BenchPoll, BenchResult, Entrant, Timed),
    *(enrolment.EnrolmentAnswer, enrolment.EnrolmentRequest, enrolment.EnrolmentToken),
]


@pytest.mark.parametrize("struct", STRUCTS, ids=lambda struct: struct.__name__)
def test_every_field_is_described(struct: type[msgspec.Struct]) -> None:
    assert set(struct.__struct_encode_fields__) <= WORDS


@pytest.mark.parametrize("codes", [Reason, Phase, Reduction, Activation, Starts, DeviceChannel])
def test_every_code_is_named(codes: type[Reason]) -> None:
    assert {code.value for code in codes} <= WORDS


def test_every_vector_is_named() -> None:
    assert {path.stem for path in (HERE / "vectors").glob("*.json")} <= WORDS


def test_number_of_latency_buckets() -> None:
    assert f"{len(BOUNDS_US)} in all" in TEXT
