"""A release that was revoked comes back on no way, and its revocation takes no model away."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from device_agent.shell.workshop import Workshop
from fleet_contract.trust.directive import ReleaseRef
from fleet_server.trust.catalogue import rotation
from tests.attacks.battlefield import Battlefield
from tests.attacks.insider import MODEL

pytestmark = pytest.mark.slow


@pytest.fixture
def field(tmp_path: Path, workshop: Workshop) -> Iterator[Battlefield]:
    """A battlefield of its own: a release floor never falls again."""
    begun = Battlefield(tmp_path, workshop)
    begun.open()
    yield begun
    begun.close()


def revoke(field: Battlefield, floor: int) -> None:
    """Raise the release floor, as edgefleet trust revoke-release does."""
    catalogue = field.app.state.catalogue
    fresh = field.keyring.propose_floor(field.keyring.keyset_bytes, MODEL, floor)
    assert rotation.withdraw(catalogue, MODEL, [], fresh, "it leaks")


def go_to(field: Battlefield, release: ReleaseRef) -> None:
    field.direct(release)
    field.wait_until(lambda: field.active_at_server() == release.digest, "the release to run")


def counter(field: Battlefield, release: ReleaseRef) -> int:
    models = field.agent._daemon.state.record.models
    return next(
        item.release_counter for item in models[MODEL].admitted if item.ref.digest == release.digest
    )


def test_rollback_to_a_revoked_release(field: Battlefield) -> None:
    old = field.stable
    field.stable = field.release()
    go_to(field, field.stable)
    # The old one is held, warm, and once ran here; the director itself asks for it.
    revoke(field, counter(field, old) + 1)
    field.expect_failure(old, "revoked_release")
    # Even with the director's key, and a keyset from before, nobody brings it back.
    field.expect_failure(old, "revoked_release")
    newest = field.release()
    field.stable = newest
    go_to(field, newest)
    assert field.feeder.failures == []


def test_revoked_release_that_is_fetched_anew(field: Battlefield) -> None:
    fresh = field.release()
    revoke(field, 100)
    # An insider with the family's key vouches for it again.
    field._number = 50
    again = field.release()
    field.expect_failure(again, "revoked_release")
    assert fresh.digest != again.digest


def test_running_release_is_taken_away_by_its_revocation(field: Battlefield) -> None:
    running = field.stable
    revoke(field, counter(field, running) + 1)
    generation = field.keyring.generation
    field.wait_until(
        lambda: field.agent._daemon.state.record.keyset.generation == generation, "the new keyset"
    )
    answered = field.feeder.answered
    field.wait_until(lambda: field.feeder.answered > answered + 5, "it to go on")
    assert field.active_at_server() == running.digest
    assert field.feeder.failures == []
    field._number = 200
    field.stable = field.release()
    go_to(field, field.stable)
