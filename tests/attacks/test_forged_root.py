"""Whoever may publish on the broker cannot make a device believe another root of trust."""

from __future__ import annotations

from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Root

from device_agent.shell.catalogue import FOLDER
from device_agent.shell.metadata_files import MetadataFiles
from fleet_contract import topics
from fleet_server.trust.catalogue import rotation
from tests.attacks.battlefield import Battlefield
from tests.attacks.insider import FLEET

pytestmark = pytest.mark.slow

TOPIC = topics.root(FLEET)


def forged(field: Battlefield, *, ahead: int) -> bytes:
    """A root of the attacker's: what comes next, with a key of theirs in every role."""
    key = CryptoSigner.generate_ed25519()
    root: Metadata[Any] = Metadata[Root].from_bytes(field.app.state.catalogue.root_bytes)
    for role in list(root.signed.roles):
        for keyid in list(root.signed.roles[role].keyids):
            root.signed.revoke_key(keyid, role)
        root.signed.add_key(key.public_key, role)
    root.signed.version += ahead
    root.signatures.clear()
    root.sign(key)
    data: bytes = root.to_bytes()
    return data


@pytest.mark.parametrize(
    ("ahead", "reason"), [(0, "bad_signature"), (1, "bad_signature"), (500, "old_metadata")]
)
def test_root_that_the_present_one_does_not_vouch_for(
    attacked: Battlefield, ahead: int, reason: str
) -> None:
    before = held(attacked)
    attacked.expect_refusal(reason, forged(attacked, ahead=ahead), TOPIC)
    assert held(attacked) == before


def test_what_is_no_root(attacked: Battlefield) -> None:
    attacked.expect_refusal("bad_metadata", b"\xff not a root", TOPIC)


def test_true_root_does_not_arrive_over_the_broker(attacked: Battlefield) -> None:
    catalogue = attacked.app.state.catalogue
    first = catalogue.root_bytes
    assert rotation.rotate_online(catalogue, "timestamp")
    attacked.wait_until(lambda: held(attacked) == catalogue.root_bytes, "the next root to arrive")
    # And none goes back behind it.
    attacked.expect_refusal("old_metadata", first, TOPIC)
    assert held(attacked) == catalogue.root_bytes


def held(field: Battlefield) -> bytes:
    """The root that the device believes."""
    data = MetadataFiles(field.device_folder / FOLDER).load("root")
    assert data is not None
    return data
