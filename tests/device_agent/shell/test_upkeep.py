"""Certificate and anchors are renewed in time, or when somebody says that they are of no use."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from device_agent.agent import Agent
from device_agent.shell import upkeep
from device_agent.shell.certificate import PAIR_FILE, Certificate, read_pair
from device_agent.shell.clock import SystemClock
from device_agent.shell.identity import enrol, load_identity
from device_agent.shell.store import Store
from device_agent.shell.tls import ANCHORS_FILE
from device_agent.shell.upkeep import renewal_ms
from device_agent.shell.workshop import Workshop
from tests.device_agent.shell.toy_authority import LIFE, Issuer, pem_of
from tests.device_agent.shell.toy_fleet import DEVICE, INPUTS, MODEL, ToyFleet

Start = Callable[[], Agent]
EXPIRED = LIFE + timedelta(minutes=1)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Growing delays grow from less: what is tested is what is done, not how late."""
    monkeypatch.setattr(upkeep, "FIRST_DELAY_MS", 50)
    monkeypatch.setattr(upkeep, "SPREAD_MS", 50)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "device"


@pytest.fixture
def start(secure_fleet: ToyFleet, folder: Path, workshop: Workshop) -> Iterator[Start]:
    """A maker of running agents of one device, which is enrolled when the first starts."""
    agents: list[Agent] = []

    def start() -> Agent:
        if not agents:
            store, token = Store(folder), secure_fleet.token()
            enrol(store, token, DEVICE, workshop.capabilities, SystemClock())
        agent = Agent.open(folder, workshop=workshop)
        agent.start()
        agents.append(agent)
        return agent

    yield start
    for agent in agents:
        agent.stop()


def online(agent: Agent, *, timeout_s: float = 60) -> bool:
    return agent._daemon.wait_until(lambda state: state.live.connected, timeout_s)


def fingerprint(folder: Path) -> str:
    return read_pair(folder, DEVICE).fingerprint


def test_models_come_over_mutual_tls(secure_fleet: ToyFleet, start: Start) -> None:
    release = secure_fleet.release("1.0.0")
    secure_fleet.admit()
    secure_fleet.direct(release)
    agent = start()
    agent.wait_for(MODEL, digest=release.digest, timeout_s=60)
    assert agent.model(MODEL).predict(INPUTS).release == release.digest


def test_certificate_that_is_old_is_renewed_with_a_new_key(
    secure_fleet: ToyFleet, start: Start, folder: Path
) -> None:
    secure_fleet.authority.ago = LIFE * 0.9
    agent = start()
    old = read_pair(folder, DEVICE)
    secure_fleet.authority.ago = timedelta()
    assert online(agent)
    secure_fleet.wait_for_file(folder / PAIR_FILE, lambda _: fingerprint(folder) != old.fingerprint)
    assert read_pair(folder, DEVICE).public_key != old.public_key


def test_expired_certificate_is_renewed_and_the_broker_reached(
    secure_fleet: ToyFleet, start: Start, folder: Path
) -> None:
    secure_fleet.authority.ago = EXPIRED
    agent = start()
    secure_fleet.authority.ago = timedelta()
    assert online(agent)


def test_certificate_that_the_broker_refuses_is_renewed(
    secure_fleet: ToyFleet, start: Start, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker's clock decides about the broker: by the device's own nothing is due."""
    monkeypatch.setattr(upkeep, "renewal_ms", lambda held: held.not_after_ms + 10**12)
    secure_fleet.authority.ago = EXPIRED
    agent = start()
    secure_fleet.authority.ago = timedelta()
    assert online(agent)


def test_server_that_nobody_vouches_for_any_more(
    secure_fleet: ToyFleet, start: Start, folder: Path
) -> None:
    agent = start()
    assert online(agent)
    new = Issuer("new servers")
    secure_fleet.authority.serve_as(issuer=new)
    anchors = pem_of(new.certificate)
    secure_fleet.catalogue.publish_document(ANCHORS_FILE, anchors)
    secure_fleet.drop_devices()
    secure_fleet.wait_for_file(folder / ANCHORS_FILE, lambda data: data == anchors)
    assert online(agent)


def test_anchors_that_are_damaged_are_fetched_again(
    secure_fleet: ToyFleet, start: Start, folder: Path
) -> None:
    start().stop()
    (folder / ANCHORS_FILE).write_bytes(b"damaged")
    assert online(start())
    assert (folder / ANCHORS_FILE).read_bytes() == secure_fleet.authority.anchors


def test_renewal_that_is_refused_leaves_the_device_as_it_is(
    secure_fleet: ToyFleet, start: Start, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secure_fleet.authority.ago = EXPIRED
    monkeypatch.setattr(secure_fleet, "renewal_answer", lambda _: (403, b"{}"))
    start()
    before = fingerprint(folder)
    posts = secure_fleet.posts
    secure_fleet.wait_for_posts(posts + 2)
    assert fingerprint(folder) == before


def test_broker_that_has_moved_is_found_after_a_renewal(
    secure_fleet: ToyFleet, start: Start, folder: Path, free_port: int
) -> None:
    there = secure_fleet.broker_url
    secure_fleet.broker_url = f"mqtts://127.0.0.1:{free_port}"
    secure_fleet.authority.ago = EXPIRED
    agent = start()
    # In this order: a certificate that is good again is not renewed for days.
    secure_fleet.broker_url = there
    secure_fleet.authority.ago = timedelta()
    assert online(agent)
    assert load_identity(Store(folder)).broker == there


def test_devices_of_one_age_renew_at_different_times_of_the_last_third() -> None:
    life_ms = 168 * 3_600_000
    times = {
        renewal_ms(Certificate("d", b"", f"{number:064x}", 0, life_ms)) for number in range(50)
    }
    assert len(times) > 40
    assert min(times) >= life_ms * 2 // 3
    assert max(times) <= life_ms * 5 // 6
