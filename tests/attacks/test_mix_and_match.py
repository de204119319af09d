"""Metadata of different times are never believed together, nor older ones after newer ones."""

from __future__ import annotations

import itertools

import pytest

from fleet_contract.errors import Reason
from fleet_contract.trust.directive import ReleaseRef
from fleet_contract.trust.keyset import KEYSET_PATH
from tests.attacks.siege import Siege
from tests.device_agent.shell.toy_fleet import MODEL


def test_replay_of_everything_that_was_true_once(siege: Siege) -> None:
    old = siege.copy()
    siege.fetch(siege.fleet.release("2.0.0", opset=14))
    newest = siege.believed("timestamp")
    release = siege.fleet.release("3.0.0", opset=15)
    siege.replay(old)
    siege.refused(release, Reason.OLD_METADATA)
    assert siege.believed("timestamp") == newest
    siege.give_up()
    siege.fetch(release)


@pytest.mark.parametrize("role", ["snapshot", "targets", "bin"])
def test_old_file_under_the_name_of_the_new_one(siege: Siege, role: str) -> None:
    old = {name: siege.present(name)[0] for name in siege.fleet.catalogue.versions()}

    def next_release() -> tuple[ReleaseRef, str]:
        release = siege.fleet.release(f"{next(numbers)}.0.0", opset=14)
        return release, siege.bin_of(release.manifest) if role == "bin" else role

    numbers = itertools.count(2)
    release, name = next_release()
    while name not in old:  # until one falls into a bin that there was before
        release, name = next_release()
    siege.fleet.catalogue.publish_document(KEYSET_PATH, siege.fleet.keyset(generation=2))
    data = siege.fleet.catalogue.read(old[name])
    assert data is not None
    siege.show(siege.present(name)[0], data)
    siege.refused(release, Reason.OLD_METADATA)
    siege.give_up()
    siege.fetch(release)


def test_bin_of_another_place(siege: Siege) -> None:
    release = siege.fleet.release("2.0.0", opset=14)
    right = siege.bin_of(release.manifest)
    others = [
        name
        for name in siege.fleet.catalogue.versions()
        if name.startswith(f"bin.{MODEL}-") and name != right
    ]
    data = siege.fleet.catalogue.read(siege.present(others[0])[0])
    assert data is not None
    siege.show(siege.present(right)[0], data)
    # One key signs all bins of a model, and none says which it is: the versions tell them apart.
    siege.refused(release, Reason.OLD_METADATA)
    siege.give_up()
    siege.fetch(release)
