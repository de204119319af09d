"""Guards from what devices have seen getting lost, and from strangers who fill the database."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fleet_contract import topics
from fleet_contract.manifest import Capabilities
from fleet_contract.messages.presence import Presence, Seen
from fleet_contract.topics import DeviceChannel
from fleet_contract.trust import checks
from fleet_server.database import Database
from fleet_server.devices import recording, service, sighting_repository, sightings
from fleet_server.devices.enrolment import Enrolled
from fleet_server.dispatch import service as dispatch
from fleet_server.dispatch.inbound import Inbound
from fleet_server.errors import NotFound
from fleet_server.trust.keyring import Keyring

Enrol = Callable[..., Enrolled]
FLEET, SESSION = "home", "0" * 16
SEEN = Seen(2, 50, 1, 9, 8, 7, ["digits"])


def said(
    device: str, seen: Seen, at_ms: int = 5, *, online: bool = True, birth: int = 1
) -> Inbound:
    capabilities = Capabilities({}, "x86_64", 1, 1, 1) if online else None
    presence = Presence(online, birth, SESSION, 1, "0.1.0", capabilities, {"m1": "ab" * 32}, seen)
    return Inbound(FLEET, device, DeviceChannel.PRESENCE, "", presence, at_ms)


def hear(fleet: Database, *inbound: Inbound) -> None:
    with fleet.transaction() as session:
        recording.handle_presence(session, inbound, 10)


def seen_by(fleet: Database, since_ms: int = 0) -> dict[str, Seen]:
    with fleet.reading() as session:
        found = sightings.sightings(session, FLEET, since_ms=since_ms)
        return {item.device: item.seen for item in found}


def test_what_was_seen_never_falls(fleet: Database, enrol: Enrol) -> None:
    enrol("dev-1")
    hear(fleet, said("dev-1", SEEN))
    hear(fleet, said("dev-1", Seen(1, 60, 1, 3, 2, 1), birth=2))
    hear(fleet, said("dev-1", Seen(2, 1), birth=3), said("dev-1", Seen(3, 1), birth=4))
    assert seen_by(fleet) == {"dev-1": Seen(3, 60, 1, 9, 8, 7, ["digits"])}


def test_retained_birth_of_a_device_that_stayed_connected_counts(
    fleet: Database, enrol: Enrol
) -> None:
    enrol("dev-1")
    hear(fleet, said("dev-1", SEEN, 5))
    assert seen_by(fleet, since_ms=6) == {}
    hear(fleet, said("dev-1", SEEN, 7))  # the very same, heard again after a restore
    assert seen_by(fleet, since_ms=6) == {"dev-1": SEEN}


def test_older_agent_says_nothing(fleet: Database, enrol: Enrol) -> None:
    enrol("dev-1")
    hear(fleet, said("dev-1", Seen()))
    assert seen_by(fleet) == {}


def test_many_devices_are_read_in_pages(fleet: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sighting_repository, "PAGE", 2)
    hear(fleet, *(said(f"dev-{number}", SEEN) for number in range(5)))
    assert len(seen_by(fleet)) == 5


def test_strangers_are_remembered_and_bounded(
    fleet: Database, enrol: Enrol, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sightings, "STRANGERS", 3)
    enrol("dev-1")
    hear(fleet, said("dev-1", SEEN), *(said(f"odd-{number}", SEEN, 5) for number in range(3)))
    hear(fleet, said("odd-3", SEEN), said("odd-0", SEEN, 9, online=False))
    with fleet.reading() as session:
        found = sightings.strangers(session, FLEET)
        assert [item.name for item in found] == ["odd-0", "odd-1", "odd-2"]
        assert (found[0].first_ms, found[0].last_ms) == (5, 9)
        assert service.devices(session, FLEET)[0].name == "dev-1"
    assert sorted(seen_by(fleet)) == ["dev-1", "odd-0", "odd-1", "odd-2"]


def test_stranger_is_taken_back(fleet: Database, keyring: Keyring) -> None:
    hear(fleet, said("odd-1", SEEN))
    with fleet.transaction() as session:
        assert sightings.adopt(session, keyring, "odd-1", now_ms=20) == "default"
    with fleet.reading() as session:
        assert sightings.strangers(session, FLEET) == []
        view = service.device(session, FLEET, "odd-1")
        assert (view.cohort, view.labels, view.capabilities.machine) == ("default", {}, "x86_64")
        topic = topics.device(FLEET, "odd-1", DeviceChannel.ASSIGNMENT)
        payload = {m.topic: m.payload for m in dispatch.control_messages(session, FLEET)}[topic]
    accepted = checks.check_assignment(
        payload, keyset=keyring.keyset, fleet=FLEET, device="odd-1", held=None
    )
    assert accepted.document.cohort == "default"


def test_nobody_is_adopted_who_was_not_heard(fleet: Database, keyring: Keyring) -> None:
    with fleet.transaction() as session, pytest.raises(NotFound):
        sightings.adopt(session, keyring, "odd-1", now_ms=20)
