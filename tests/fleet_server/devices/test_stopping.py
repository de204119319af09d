"""Guards from a fleet that cannot be stopped, or is stopped by silence."""

from __future__ import annotations

from typing import Any

import pytest

from fleet_contract import topics
from fleet_contract.trust.checks import Acceptance, Accepted, check_stop
from fleet_contract.trust.directive import Stop
from fleet_server.database import Database
from fleet_server.devices import stopping
from fleet_server.dispatch import service as dispatch
from fleet_server.errors import Invalid
from fleet_server.trust.keyring import Keyring


def retained(fleet: Database, keyring: Keyring, held: Acceptance | None) -> Accepted[Stop]:
    with fleet.reading() as session:
        messages = dispatch.control_messages(session, "home")
    payload = next(m.payload for m in messages if m.topic == topics.stop("home"))
    return check_stop(payload, keyset=keyring.keyset, fleet="home", held=held)


def test_fleet_that_may_not_move_at_first_start(fleet: Database, keyring: Keyring) -> None:
    assert not retained(fleet, keyring, None).document.stopped


def test_restart_lifts_the_stop(fleet: Database, keyring: Keyring, clock: Any) -> None:
    first = retained(fleet, keyring, None).acceptance
    with fleet.transaction() as session:
        stopping.set_stop(session, keyring, stopped=True, reason=" smoke\n", now_ms=1)
    with fleet.transaction() as session:
        stopping.ensure_stop(session, keyring, now_ms=clock.now_ms())
    stopped = retained(fleet, keyring, first)
    assert stopped.document.stopped
    assert stopped.document.reason == "smoke"
    with fleet.transaction() as session:
        stopping.set_stop(session, keyring, stopped=False, reason="", now_ms=0)
    # Even with the server's clock set back, devices accept it: the epoch only grows.
    assert not retained(fleet, keyring, stopped.acceptance).document.stopped
    with fleet.reading() as session:
        assert not stopping.stop_of(session, "home").stopped


@pytest.mark.parametrize("reason", ["", "  \n", "x" * 301])
def test_stop_that_nobody_can_explain(fleet: Database, keyring: Keyring, reason: str) -> None:
    with pytest.raises(Invalid), fleet.transaction() as session:
        stopping.set_stop(session, keyring, stopped=True, reason=reason, now_ms=1)
    assert not retained(fleet, keyring, None).document.stopped


def test_unknown_stop_counts_as_lifted(database: Database) -> None:
    with database.reading() as session:
        assert stopping.stop_of(session, "home").stopped
