"""Guards from devices in no cohort, in two, or in one that they were not told of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlmodel import Session

from fleet_contract import topics
from fleet_contract.topics import DeviceChannel
from fleet_contract.trust.checks import Acceptance, Accepted, check_assignment
from fleet_contract.trust.directive import Assignment
from fleet_server.database import Database
from fleet_server.devices import cohorts, service
from fleet_server.devices.cohorts import Cohort, cohort_for
from fleet_server.devices.enrolment import Enrolled
from fleet_server.dispatch import service as dispatch
from fleet_server.errors import Conflict, Invalid, NotFound
from fleet_server.trust.keyring import Keyring

Enrol = Callable[..., Enrolled]


def held_assignment(
    fleet: Database, keyring: Keyring, name: str, held: Acceptance | None = None
) -> Accepted[Assignment]:
    topic = topics.device("home", name, DeviceChannel.ASSIGNMENT)
    with fleet.reading() as session:
        payloads = [
            message.payload
            for message in dispatch.control_messages(session, "home")
            if message.topic == topic
        ]
    return check_assignment(
        payloads[0], keyset=keyring.keyset, fleet="home", device=name, held=held
    )


def create(
    fleet: Database, keyring: Keyring, clock: Any, name: str, priority: int = 10, **selector: Any
) -> list[str]:
    with fleet.transaction() as session:
        return service.create_cohort(
            session,
            keyring,
            name=name,
            selector=selector,
            priority=priority,
            now_ms=clock.now_ms(),
        )


def relabel(fleet: Database, keyring: Keyring, clock: Any, name: str, **labels: str) -> str:
    with fleet.transaction() as session:
        return service.relabel(
            session, keyring, name=name, labels=labels, now_ms=clock.now_ms()
        ).cohort


def put_directive(session: Session, cohort: str, model: str, epoch: int) -> None:
    dispatch.put_control(
        session,
        fleet="home",
        topic=topics.directive("home", cohort, model),
        epoch=epoch,
        payload=b"signed",
        now_ms=1,
    )


WORDS = st.sampled_from(["a", "b", "c"])
COHORTS = st.lists(
    st.builds(
        Cohort,
        name=st.text("xyz", min_size=2, max_size=3),
        selector=st.dictionaries(WORDS, WORDS | st.lists(WORDS, min_size=1), min_size=1),
        priority=st.integers(1, 3),
    ),
    unique_by=lambda cohort: cohort.name,
)


@given(labels=st.dictionaries(WORDS, WORDS), found=COHORTS, order=st.randoms(use_true_random=False))
def test_cohort_that_depends_on_the_order_of_rows(
    labels: dict[str, str], found: list[Cohort], order: Any
) -> None:
    expected = cohort_for(labels, found)
    order.shuffle(found)
    assert cohort_for(labels, found) == expected
    matching = [cohort for cohort in found if cohort.takes(labels)]
    if not matching:
        assert expected == cohorts.DEFAULT
    else:
        chosen = next(cohort for cohort in found if cohort.name == expected)
        assert chosen in matching
        assert chosen.priority == max(cohort.priority for cohort in matching)


def test_new_cohort_leaves_its_devices_where_they_were(
    fleet: Database, keyring: Keyring, clock: Any, enrol: Enrol
) -> None:
    enrol("dev-1", site="lab")
    enrol("dev-2", site="roof")
    enrol("dev-3", site="attic")
    before = held_assignment(fleet, keyring, "dev-1").acceptance
    untouched = held_assignment(fleet, keyring, "dev-3")
    assert create(fleet, keyring, clock, "inside", site=["lab", "roof"]) == ["dev-1", "dev-2"]
    after = held_assignment(fleet, keyring, "dev-1", held=before)
    assert after.document.cohort == "inside"
    assert not after.repeated
    assert held_assignment(fleet, keyring, "dev-3") == untouched
    with fleet.reading() as session:
        counts = {view.name: view.devices for view in service.list_cohorts(session, "home")}
        members = [view.name for view in service.members(session, "home", "inside")]
    assert counts == {"inside": 2, "default": 1}
    assert members == ["dev-1", "dev-2"]


def test_lower_priority_takes_devices_away(
    fleet: Database, keyring: Keyring, clock: Any, enrol: Enrol
) -> None:
    enrol("dev-1", site="lab", hardware="rpi5")
    create(fleet, keyring, clock, "lab", priority=20, site="lab")
    assert create(fleet, keyring, clock, "rpi", priority=10, hardware="rpi5") == []
    assert create(fleet, keyring, clock, "top", priority=30, hardware="rpi5") == ["dev-1"]


def test_mover_is_fed_an_old_directive(
    fleet: Database, keyring: Keyring, clock: Any, enrol: Enrol
) -> None:
    enrol("dev-1", site="lab")
    create(fleet, keyring, clock, "roof", site="roof")
    with fleet.transaction() as session:
        put_directive(session, "roof", "detector", 4711)
        put_directive(session, "roof", "counter", 42)
        put_directive(session, "default", "detector", 9000)
    assert held_assignment(fleet, keyring, "dev-1").document.minimum_epochs == {}
    assert relabel(fleet, keyring, clock, "dev-1", site="roof") == "roof"
    moved = held_assignment(fleet, keyring, "dev-1").document
    assert moved.minimum_epochs == {"detector": 4711, "counter": 42}


def test_newcomer_is_fed_an_old_directive(
    fleet: Database, keyring: Keyring, clock: Any, enrol: Enrol
) -> None:
    with fleet.transaction() as session:
        put_directive(session, "default", "detector", 9000)
    enrol("dev-1")
    assert held_assignment(fleet, keyring, "dev-1").document.minimum_epochs == {"detector": 9000}


def test_same_labels_again_disturb_the_device(
    fleet: Database, keyring: Keyring, clock: Any, enrol: Enrol
) -> None:
    enrol("dev-1", site="lab")
    before = held_assignment(fleet, keyring, "dev-1")
    relabel(fleet, keyring, clock, "dev-1", site="lab")
    assert held_assignment(fleet, keyring, "dev-1") == before


def test_device_that_is_not_there(fleet: Database, keyring: Keyring, clock: Any) -> None:
    with pytest.raises(NotFound):
        relabel(fleet, keyring, clock, "nobody", site="lab")


def test_cohort_name_that_is_taken(fleet: Database, keyring: Keyring, clock: Any) -> None:
    create(fleet, keyring, clock, "lab", site="lab")
    with pytest.raises(Conflict):
        create(fleet, keyring, clock, "lab", site="roof")


@pytest.mark.parametrize(
    ("name", "selector", "priority"),
    [
        ("../lab", {"site": "lab"}, 10),
        ("default", {"site": "lab"}, 10),
        ("la+b", {"site": "lab"}, 10),
        ("lab", {}, 10),
        ("lab", {"site": []}, 10),
        ("lab", {"site": ["x"] * 65}, 10),
        ("lab", {"si te": "lab"}, 10),
        ("lab", {"site": "la\nb"}, 10),
        ("lab", {"site": "lab"}, 0),
        ("lab", {"site": "lab"}, 2**40),
        ("lab", {f"key{number}": "x" for number in range(33)}, 10),
    ],
)
def test_cohort_that_cannot_be(name: str, selector: dict[str, Any], priority: int) -> None:
    with pytest.raises(Invalid):
        cohorts.check_cohort(name, selector, priority)


def test_labels_that_do_not_fit_an_assignment(
    fleet: Database, keyring: Keyring, clock: Any, enrol: Enrol
) -> None:
    enrol("dev-1")
    largest = {f"{number:02d}" + "k" * 61: "v" * 63 for number in range(cohorts.LABELS)}
    relabel(fleet, keyring, clock, "dev-1", **largest)
    document = held_assignment(fleet, keyring, "dev-1").document
    assert document.labels == largest
    assert msgspec.json.encode(document)
    with pytest.raises(Invalid):
        relabel(fleet, keyring, clock, "dev-1", **largest, one="more")
