"""A threshold is a number of different keys: one thief is not enough where two have to agree."""

from __future__ import annotations

import pytest

from fleet_contract.errors import Reason
from fleet_contract.trust.keyset import KEYSET_PATH
from tests.attacks.siege import Siege, signed, stranger


@pytest.mark.parametrize("role", ["root", "timestamp", "targets"])
def test_one_of_two_keys(siege: Siege, role: str) -> None:
    _, root = siege.present("root")
    second = stranger()
    root.signed.version = 2
    root.signed.add_key(second.public_key, role)
    root.signed.roles[role].threshold = 2
    siege.fleet.catalogue.publish_document(KEYSET_PATH, siege.fleet.keyset(generation=2))
    release = siege.fleet.release("2.0.0", opset=14)
    owner = siege.key_of("root")
    siege.show("2.root.json", signed(root, owner, *([second] if role == "root" else [])))
    if role == "root":
        root.signed.version = 3
        siege.show("3.root.json", signed(root, owner))
    siege.refused(release, Reason.BAD_SIGNATURE)
    assert siege.believed("root") == 2

    # With both of them it is believed.
    if role == "root":
        siege.show("3.root.json", signed(root, owner, second))
    else:
        shown, metadata = siege.present(role)
        siege.show(shown, signed(metadata, siege.key_of(role), second))
    siege.fetch(release)
