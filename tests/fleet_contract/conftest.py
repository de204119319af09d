"""Keys, documents and a schema to test the contract with; all of them fixed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fleet_contract import codec
from fleet_contract.features import (
    INNER_EDGES,
    CategoricalFeature,
    FeatureSchema,
    FeatureSet,
    NumericFeature,
    Reduction,
    Source,
)
from fleet_contract.trust import envelope
from fleet_contract.trust.directive import (
    DIRECTIVE_TYPE,
    Activation,
    Arm,
    Directive,
    ReleaseRef,
    Starts,
)
from fleet_contract.trust.keyset import Keyset, PublicKey


class Key:
    """An Ed25519 key made from one byte."""

    def __init__(self, seed: int) -> None:
        self._private = Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)
        self.public = self._private.public_key().public_bytes_raw()
        self.keyid = envelope.key_id(self.public)

    def sign(self, data: bytes) -> bytes:
        return self._private.sign(data)

    def seal(self, payload_type: str, payload: bytes) -> bytes:
        return envelope.seal(payload_type, payload, {self.keyid: self.sign})

    def public_key(self) -> PublicKey:
        return PublicKey(self.keyid, self.public.hex())


@pytest.fixture(scope="session")
def make_key() -> Callable[[int], Key]:
    return Key


@pytest.fixture(scope="session")
def root() -> Key:
    return Key(1)


@pytest.fixture(scope="session")
def director() -> Key:
    return Key(2)


@pytest.fixture(scope="session")
def keyset(director: Key) -> Keyset:
    return Keyset("home", 3, 100, [director.public_key(), Key(4).public_key()])


RELEASE = ReleaseRef("manifests/digits/" + "ab" * 32 + ".json", "ab" * 32)


@pytest.fixture(scope="session")
def directive() -> Directive:
    return Directive(
        fleet="home",
        cohort="lab",
        model="digits",
        generation=3,
        epoch=1_000,
        issued_ms=1_000,
        expires_ms=9_000,
        rollout="r1",
        salt="00112233445566778899aabbccddeeff",
        default=RELEASE,
        arms=[Arm("canary", "0" * 16, "7" + "f" * 15, RELEASE, 1_000)],
        activation=Activation.ACTIVE,
        starts=Starts.OPEN,
        spread_ms=0,
        soak_ms=5_000,
        report_every_ms=10_000,
        retry=0,
        standby=None,
    )


@pytest.fixture(scope="session")
def seal_directive(director: Key, directive: Directive) -> Callable[..., bytes]:
    """``seal_directive(key=..., field=value, ...)``: the directive with changes, signed."""

    def seal(key: Key = director, **changes: Any) -> bytes:
        changed = msgspec.structs.replace(directive, **changes)
        return key.seal(DIRECTIVE_TYPE, codec.encode_json(changed))

    return seal


@pytest.fixture(scope="session")
def schema() -> FeatureSchema:
    edges = np.linspace(-3.0, 3.0, INNER_EDGES).tolist()
    return FeatureSchema(
        FeatureSet(
            numeric=[
                NumericFeature("brightness", Source("image", Reduction.MEAN), 10, edges),
                NumericFeature("first", Source("image", Reduction.COLUMN, 0), 10, edges),
            ]
        ),
        FeatureSet(
            numeric=[
                NumericFeature(
                    "entropy", Source("scores", Reduction.ENTROPY, logits=True), 16, edges
                )
            ],
            categorical=[
                CategoricalFeature("winner", Source("scores", Reduction.TOP_CLASS), ["a", "b", "c"])
            ],
        ),
    )
