"""A fleet is carried across every rotation and every lost key, by the command line, and loses none.

Root and targets are two of three keys that were never on the server. After each ceremony a rollout
has to reach all devices: they believe the new keys, and nobody was touched.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner

from simulator.digits import MODEL, TrainedModel
from simulator.live.fleet import LiveFleet
from tests.end_to_end.holders import Holders
from tests.end_to_end.town import (
    BAD,
    DEVICES,
    FIRST,
    GOOD,
    Said,
    Town,
    goes_on_predicting,
    wait_for_versions,
    wait_until,
)

pytestmark = pytest.mark.slow


@pytest.fixture
def holders(tmp_path: Path) -> Holders:
    return Holders(tmp_path)


@pytest.fixture
def guarded(
    tmp_path: Path,
    free_port: int,
    models: dict[str, TrainedModel],
    images: Path,
    holders: Holders,
) -> Iterator[Town]:
    """A server that never had the keys of root and targets, and two releases."""
    town = Town(tmp_path, port=free_port, images=images, broker="embedded")
    holders.found(town)
    try:
        town.start()
        holders.delegate(town)
        town.push([models[FIRST], models[GOOD]])
        yield town
    finally:
        town.close()


def test_fleet_across_every_rotation_and_every_lost_key(
    guarded: Town, holders: Holders, models: dict[str, TrainedModel], tmp_path: Path
) -> None:
    town = guarded
    town.make_cohort("lab")
    team = tmp_path / "team"
    team.mkdir()
    (team / "family.pem").write_bytes(CryptoSigner.generate_ed25519().private_bytes)
    fresh = ("--offline", str(holders.fresh), "--yes")
    with town.fleet("lab") as fleet:
        versions = iter([FIRST, GOOD] * 20)
        _all_follow(town, fleet, next(versions))

        def ceremony(*words: str) -> None:
            said = town.edgefleet("trust", "rotate", *words, "--json")
            assert said.code == 0, said

        def follow() -> None:
            holders.sign(town)
            _all_follow(town, fleet, next(versions))

        # What is rotated by plan, and the server's own keys when it was broken into.
        for words in (("timestamp",), ("snapshot",), ("director",)):
            ceremony(*words)
            follow()
        # The director is in other hands.
        generation = _status(town, "generation")
        ceremony("director", "--lost")
        follow()
        assert _status(town, "generation") == generation + 1
        # One holder has lost targets; another one root.
        for role in ("targets", "root"):
            ceremony(role, *fresh)
            holders.sign(town)
            holders.take(role)
            _all_follow(town, fleet, next(versions))
        # The team's key is in other hands; then it leaves the server for good.
        ceremony("family", MODEL, "--lost")
        follow()
        ceremony("family", MODEL, "--public", str(team / "family.pem"))
        holders.sign(town, others=(team,))
        _all_follow(town, fleet, next(versions))
        _signed_by_the_team(town, models[BAD], team / "family.pem")
        # A start with all of that behind it changes nothing.
        town.stop()
        town.start()
        _all_follow(town, fleet, next(versions))
        goes_on_predicting(fleet)
        _revoked(town)


def _all_follow(town: Town, fleet: LiveFleet, version: str) -> None:
    assert town.roll_out("lab", version)["brief"]["state"] == "completed"
    wait_for_versions(town, fleet, {version: DEVICES})


def _status(town: Town, name: str) -> int:
    return int(town.edgefleet("trust", "status", "--json").json[name])


def _signed_by_the_team(town: Town, model: TrainedModel, key: Path) -> None:
    """A release that is pushed now waits until the team has signed it."""
    path = f"/v1/models/{MODEL}/releases/{model.version}"
    with pytest.raises(AssertionError, match="unsigned"):
        town.push([model])
    refused = town.edgefleet("rollout", "start", MODEL, model.version, "--cohort", "lab")
    assert refused.code == 1 and "waits for the signature" in refused.err
    said = town.edgefleet("model", "sign", MODEL, model.version, "--key", str(key), "--yes")
    assert said.code == 0, said
    wait_until(lambda: town.ask("GET", path)["state"] == "staged", "the release to go on")


def _revoked(town: Town) -> None:
    words = ("trust", "revoke-release", MODEL, BAD, "--reason", "it drifts", "--yes")
    said: Said = town.edgefleet(*words)
    assert said.code == 1 and "--with-older" in said.err
    assert town.ask("GET", f"/v1/models/{MODEL}/releases/{BAD}")["state"] == "staged"


def test_server_that_held_the_root_key(
    town: Town, tmp_path: Path, models: dict[str, TrainedModel]
) -> None:
    """A trying-out server gives root and targets away, while a fleet runs."""
    town.make_cohort("moved")
    keys = tmp_path / "keys"
    assert "root's keys lie" in town.edgefleet("trust", "status").out
    with town.fleet("moved") as fleet:
        for role in ("root", "targets"):
            said = town.edgefleet(
                "trust", "rotate", role, "--offline", str(keys), "--yes", "--json"
            )
            assert said.code == 0 and said.json["committed"], said
        status = town.edgefleet("trust", "status", "--json").json
        roles = {item["role"]: item for item in status["roles"]}
        for role in ("root", "targets"):
            assert roles[role]["threshold"] == 2
            assert not any(key["here"] for key in roles[role]["keys"])
            assert not list((town.data_dir / "trust" / "keys").glob(f"{role}*.pem"))
        assert town.roll_out("moved", FIRST)["brief"]["state"] == "completed"
        wait_for_versions(town, fleet, {FIRST: DEVICES})
