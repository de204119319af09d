"""Guards from a recovery that never ends, since each run of it wants signatures of its own.

The keys of root and targets are elsewhere: what is raised waits for whoever holds them.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from securesystemslib.signer import CryptoSigner

from fleet_contract.messages.presence import Seen
from fleet_contract.trust.keyset import KEYSET_PATH
from fleet_server import succession
from fleet_server.audit.verification import PAYLOAD_TYPE, Seal
from fleet_server.backup import recovery
from fleet_server.database import Database
from fleet_server.trust import offline
from fleet_server.trust.catalogue.committed import Founders
from fleet_server.trust.catalogue.opening import make_catalogue, open_catalogue
from fleet_server.trust.catalogue.repository import Catalogue
from fleet_server.trust.keyring import Keyring
from tests.fleet_server.conftest import ObedientClock

NOW_MS = 1_795_000_000_000
SEEN = Seen(4, NOW_MS + 99, 1, 20, 20, 20, ["digits"])


class Restored:
    """A server that was restored a moment ago, and the holder of its targets."""

    def __init__(self, folder: Path, database: Database, keyring: Keyring) -> None:
        self._database, self._keyring = database, keyring
        self._keys = {role: CryptoSigner.generate_ed25519() for role in ("root", "targets")}
        make_catalogue(
            folder,
            os.urandom,
            NOW_MS,
            founders={role: Founders([key], 1) for role, key in self._keys.items()},
            documents={KEYSET_PATH: keyring.keyset_bytes},
            families_offline=False,
        )
        self.catalogue: Catalogue = open_catalogue(
            folder, may_make=False, random_bytes=os.urandom, now_ms=lambda: NOW_MS
        )
        nothing_waits: Any = SimpleNamespace(settle=lambda: None)
        self.catalogue.followed = succession.Succession(
            database,
            self.catalogue,
            keyring,
            nothing_waits,
            ObedientClock(NOW_MS),
            lambda: None,
            Seal(partial(keyring.sign_checkpoint, PAYLOAD_TYPE), keyring.checkpoint_keys),
        )

    def go_on(self, seen: Seen, *, leads: bool = False) -> recovery.Raised:
        return recovery.raise_trust(
            self._database,
            self.catalogue,
            self._keyring,
            seen,
            accept_floors=False,
            strangers=[],
            restored_ms=None if leads else NOW_MS,
            now_ms=NOW_MS,
        )

    def sign(self) -> None:
        catalogue = self.catalogue
        (proposal,) = catalogue.changes.pending.values()
        brought = []
        for need in catalogue.changes.needs(proposal):
            data = proposal.metadata()[need.role].signed_bytes
            wanted = [offline.held(key) for key in need.unsigned.values()]
            signed = offline.sign(data, wanted, list(self._keys.values()), [])
            brought += [(need.role, keyid, text) for keyid, text in signed.items()]
        catalogue.add_signatures(proposal.id, brought)
        assert not catalogue.changes.pending


@pytest.fixture
def restored(tmp_path: Path, database: Database, keyring: Keyring) -> Restored:
    return Restored(tmp_path / "guarded", database, keyring)


def test_holders_of_targets_sign_once(restored: Restored) -> None:
    for _ in range(2):
        done = restored.go_on(SEEN)
        assert not done.complete
        assert done.unsigned == ["targets"]
    restored.sign()
    done = restored.go_on(SEEN)
    assert (done.complete, done.unsigned, done.generation) == (True, [], 5)


def test_family_of_after_the_backup_waits_with_targets(restored: Restored) -> None:
    seen = msgspec.structs.replace(SEEN, families=["later"])
    assert restored.go_on(seen).unsigned == ["targets"]
    assert "model.later" not in restored.catalogue.versions()
    (key,) = restored.catalogue.changes.keys("model.later")
    assert restored.go_on(seen).unsigned == ["targets"]
    assert restored.catalogue.changes.keys("model.later") == [key]
    restored.sign()
    versions = restored.catalogue.versions()
    assert len([name for name in versions if name.startswith("bin.later-")]) == 16
    assert versions["model.later"] > seen.targets
    assert restored.go_on(seen).complete


def test_device_that_has_fetched_the_signed_keyset_does_not_start_it_anew(
    restored: Restored,
) -> None:
    restored.go_on(SEEN)
    restored.sign()
    versions = restored.catalogue.versions()
    known = Seen(5, SEEN.epoch, 1, versions["timestamp"], versions["snapshot"], versions["targets"])
    assert restored.go_on(known).complete


@pytest.mark.parametrize(
    "late",
    [
        Seen(6, 0, 1, 1, 1, 1, []),
        Seen(1, NOW_MS + 100, 1, 1, 1, 1, []),
        Seen(1, 0, 1, 5_000, 1, 1, []),
        Seen(1, 0, 1, 1, 5_000, 1, []),
        Seen(1, 0, 1, 1, 1, 5_000, []),
    ],
)
def test_latecomer_that_has_seen_more_is_signed_for(restored: Restored, late: Seen) -> None:
    restored.go_on(SEEN)
    restored.sign()
    assert not restored.go_on(late).complete


def test_server_that_leads_raises_every_time(restored: Restored) -> None:
    restored.go_on(SEEN)
    restored.sign()
    assert not restored.go_on(SEEN, leads=True).complete
