"""Twenty devices behind Mosquitto live through every ceremony and a restored server; none is lost.

All is done as an operator does it, by the command line, in the order of docs/operating/trust.md and
backup.md. Root and targets are two of three keys that were never on the server. After each ceremony
a rollout has to reach all devices, and every one of them answers all the time. What the broker's
other kind and a family's key in other hands are like: test_rotations.py, test_restore.py.
"""

from __future__ import annotations

import itertools
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest

from device_agent.shell import certificate
from device_agent.shell.certificate import PAIR_FILE
from device_agent.shell.clock import SystemClock
from device_agent.shell.identity import FILE_NAME as IDENTITY_FILE
from device_agent.shell.identity import DeviceIdentity, load_identity
from device_agent.shell.store import Store
from device_agent.shell.tls import Tls
from fleet_contract import codec
from fleet_contract.enrolment import RenewalAnswer, RenewalRequest
from simulator.digits import MODEL, TrainedModel
from simulator.live.fleet import LiveFleet
from tests.end_to_end.holders import Holders
from tests.end_to_end.town import (
    DEADLINE_S,
    FIRST,
    FULL,
    GOOD,
    Town,
    goes_on_predicting,
    plan,
    running,
    wait_for_versions,
    wait_until,
)

pytestmark = [pytest.mark.slow, pytest.mark.broker]

FLEET = 20
LATE = 1
OTHER, NEW, NEWEST = "1.2.0", "1.3.0", "1.4.0"
COHORT = "lab"
RATE = 2.0
PLAN = plan({**FULL, "minimum_predictions": 100})
"""What is rehearsed is who follows: few predictions do."""


@dataclass(frozen=True)
class Ceremony:
    """A rotation as an operator types it: ``edgefleet trust rotate``, and these words.

    ``given_out`` is the role whose new keys people take away; ``stops`` is whether the runbook
    stops the fleet meanwhile.
    """

    words: tuple[str, ...]
    given_out: str = ""
    stops: bool = False

    @property
    def name(self) -> str:
        return f"rotate {' '.join(self.words)}"


# In this order. Devices renew their certificates when their authority is not believed any more.
CEREMONIES = (
    Ceremony(("snapshot",)),
    Ceremony(("timestamp",)),
    Ceremony(("targets",), given_out="targets"),
    Ceremony(("family", MODEL)),
    Ceremony(("root",), given_out="root"),
    Ceremony(("director",)),
    Ceremony(("director", "--lost"), stops=True),
    Ceremony(("device-ca",)),
    Ceremony(("device-ca", "--finish", "--yes")),
    Ceremony(("broker",)),
    Ceremony(("broker", "--finish")),
)


@contextmanager
def timed(what: str) -> Iterator[None]:
    began_s = time.monotonic()
    yield
    print(f"rehearsal: {what:<44}{time.monotonic() - began_s:7.1f} s")


@pytest.fixture
def holders(tmp_path: Path) -> Holders:
    return Holders(tmp_path)


@pytest.fixture
def town(
    tmp_path: Path,
    free_port: int,
    models: dict[str, TrainedModel],
    images: Path,
    holders: Holders,
    require_mosquitto: Path,
) -> Iterator[Town]:
    """A server with a Mosquitto of its own, without the keys of root and targets."""
    assert require_mosquitto.exists()
    made = Town(tmp_path, port=free_port, images=images, broker="mosquitto")
    holders.found(made)
    try:
        made.start()
        holders.delegate(made)
        made.push([models[FIRST], models[GOOD], replace(models[GOOD], version=OTHER)])
        yield made
    finally:
        made.close()


def test_fleet_of_twenty_through_every_ceremony_and_a_restore(
    town: Town, holders: Holders, models: dict[str, TrainedModel]
) -> None:
    town.make_cohort(COHORT)
    versions = itertools.cycle((GOOD, OTHER))
    with town.fleet(COHORT, devices=FLEET, rate=RATE) as fleet:
        assert _identity(town, fleet).broker.startswith("mqtts:")
        with timed(f"{FIRST} to {FLEET} devices"):
            reaches_all(town, fleet, FIRST)
        # Calls before the first model came; from now on there has to be one.
        before = fleet.status().without_model
        enrolled = _files(town, fleet, IDENTITY_FILE)
        for ceremony in CEREMONIES:
            with timed(ceremony.name):
                hold(town, holders, ceremony)
            with timed("  and a rollout"):
                reaches_all(town, fleet, next(versions))
        with timed(f"revoke-release {FIRST}"):
            revoke(town, holders)
        with timed("  and a rollout"):
            reaches_all(town, fleet, next(versions))
        pairs = _files(town, fleet, PAIR_FILE)
        renewed = restored(town, holders, fleet, models, next(versions))
        goes_on_predicting(fleet)
        status = fleet.status()
        assert (status.connected, status.without_model) == (FLEET, before)
        # Nobody was enrolled anew, and but for one all show the certificates of before the restore.
        assert _files(town, fleet, IDENTITY_FILE) == enrolled
        now = _files(town, fleet, PAIR_FILE)
        assert {name for name in now if now[name] != pairs[name]} == {renewed}
        print(f"rehearsal: {status.predictions} predictions, {status.failed_inferences} failed")
        print(f"rehearsal: the agents took {status.cpu_s:.1f} s of CPU")
    town.stop()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"rehearsal: all processes took {used.ru_utime + used.ru_stime:.1f} s of CPU")


def reaches_all(town: Town, fleet: LiveFleet, version: str, *others: LiveFleet) -> None:
    """A rollout comes to its end and no device is left behind."""
    ended = town.roll_out(COHORT, version, PLAN)
    assert ended["brief"]["state"] == "completed", ended["explanation"]
    wait_for_versions(town, fleet, {version: FLEET})
    for other in others:
        wait_for_versions(town, other, {version: LATE})
    status = fleet.status()
    assert status.failed_inferences == 0, status.failures


def hold(town: Town, holders: Holders, ceremony: Ceremony) -> None:
    """A ceremony from its first command to its last signature."""
    if ceremony.stops:
        assert town.edgefleet("stop", "--reason", "the director was stolen").code == 0
    offline = ("--offline", str(holders.fresh), "--yes") if ceremony.given_out else ()
    said = town.edgefleet("trust", "rotate", *ceremony.words, *offline, "--json")
    assert said.code == 0, said
    holders.sign(town)
    if ceremony.given_out:
        holders.take(ceremony.given_out)
    if ceremony.stops:
        assert town.edgefleet("stop", "--lift").code == 0


def revoke(town: Town, holders: Holders) -> None:
    """The oldest release falls for ever; those that run stay."""
    words = ("revoke-release", MODEL, FIRST, "--reason", "it leaks", "--yes")
    said = town.edgefleet("trust", *words)
    assert said.code == 0, said
    holders.sign(town)
    refused = town.edgefleet("rollout", "start", MODEL, FIRST, "--cohort", COHORT)
    assert refused.code == 1 and "revoked" in refused.err, refused


def restored(
    town: Town,
    holders: Holders,
    fleet: LiveFleet,
    models: dict[str, TrainedModel],
    version: str,
) -> str:
    """Backup, life goes on, the server is lost, an older one takes its place.

    Returns the device whose certificate was renewed after the backup.
    """
    backup = town.folder / "backup.tar"
    held = running(town, fleet)
    with timed("backup"):
        assert town.edgefleet("backup", str(backup)).code == 0
    with timed("two rollouts, a renewal, a device more"):
        reaches_all(town, fleet, version)
        renewed = renew_first(town, fleet)
        town.push([replace(models[GOOD], version=NEW)])
        reaches_all(town, fleet, NEW)
    with town.fleet(COHORT, devices=LATE, prefix="late", rate=RATE) as late:
        wait_for_versions(town, late, {NEW: LATE})
        with timed("power cut, restore, start"):
            town.lose_and_restore(backup)
        with timed("after-restore"):
            after_restore(town, holders)
        with timed("  all go back to what this server knows"):
            wait_for_versions(town, fleet, held)
            wait_for_versions(town, late, {NEW: LATE})
        with timed("  and a rollout of a new release"):
            label = ("--label", f"cohort={COHORT}")
            assert town.edgefleet("device", "label", "late-0001", *label).code == 0
            town.push([replace(models[GOOD], version=NEWEST)])
            reaches_all(town, fleet, NEWEST, late)
        goes_on_predicting(late)
    return renewed


def after_restore(town: Town, holders: Holders) -> None:
    """As the runbook says: adopt, sign what keys elsewhere have to, and once more."""

    def heard() -> bool:
        shown = town.ask("GET", "/v1/trust/after-restore")
        return shown["reported"] == FLEET and len(shown["strangers"]) == LATE

    wait_until(heard, "the devices to tell what they have seen")
    words = ("trust", "after-restore", "--adopt", "--json")
    done = town.edgefleet(*words).json
    assert done["adopted"] == ["late-0001"]
    assert not done["complete"]
    holders.sign(town)
    done = town.edgefleet(*words).json
    assert done["complete"], done
    wait_until(lambda: town.http.get("/ready").status_code == 200, "the server to lead")


def renew_first(town: Town, fleet: LiveFleet) -> str:
    """Renew one device's certificate as its agent does, days before that is due."""
    name = min(fleet.status().active)
    folder = town.folder / COHORT / name
    clock = SystemClock()
    tls = Tls(folder, name, now_ms=clock.now_ms, time_floor_ms=lambda: 0)
    key = certificate.next_key(folder, held=tls.certificate().public_key)
    request = RenewalRequest(certificate.request_for(key, name))
    server = _identity(town, fleet).server
    with httpx.Client(base_url=server, verify=tls.context(), timeout=DEADLINE_S) as client:
        answer = client.post("/v1/devices/renew", content=codec.encode_json(request))
    assert answer.is_success, answer.text
    read = codec.decode_json(answer.content, RenewalAnswer, limit_bytes=65_536)
    tls.save_pair(certificate.join(key, read.certificate, name))
    return name


def _identity(town: Town, fleet: LiveFleet) -> DeviceIdentity:
    return load_identity(Store(town.folder / COHORT / min(fleet.status().active)))


def _files(town: Town, fleet: LiveFleet, name: str) -> dict[str, bytes]:
    """Return device → what is in this file of it."""
    folder = town.folder / COHORT
    return {device: (folder / device / name).read_bytes() for device in fleet.status().active}
