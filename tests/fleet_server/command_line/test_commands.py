"""Guards from commands that fail without saying what to do, or say yes and do nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fleet_contract import codec
from fleet_contract.manifest import Capabilities
from fleet_server import data_folder
from fleet_server.command_line.output import ago, duration
from tests.fleet_server.device_key import DeviceKey

Edgefleet = Callable[..., Any]


@pytest.fixture
def here(server: Any) -> Any:
    """A running server that wrote down its address, as ``edgefleet server`` does."""
    data_folder.remember_url(server.settings.data_dir, server.settings.url)
    return server


def enrol(server: Any, token: str, name: str, capabilities: Capabilities) -> None:
    request = DeviceKey().request(token, name, capabilities)
    answer = server.anonymous.post("/v1/devices/enrol", content=codec.encode_json(request))
    assert answer.status_code == 201, answer.text


def test_newcomer_who_is_left_alone(edgefleet: Edgefleet) -> None:
    said = edgefleet("--help")
    assert said.code == 0
    for step in ("edgefleet server", "device token", "enroll TOKEN", "model push", "rollout start"):
        assert step in said.out


def test_first_ten_minutes(here: Any, edgefleet: Edgefleet, capabilities: Capabilities) -> None:
    assert "device token" in edgefleet("device", "list").out
    said = edgefleet("device", "token", "--label", "site=lab", "--label", "hardware=rpi5")
    # Nothing but the token: a script takes it as it is.
    enrol(here, said.out.strip(), "dev-1", capabilities)
    assert "1 devices" in edgefleet("cohort", "create", "lab", "--label", "site=lab").out
    listed = edgefleet("device", "list", "--cohort", "lab").out
    assert "dev-1" in listed and "hardware=rpi5 site=lab" in listed
    shown = edgefleet("device", "show", "dev-1").out
    assert "cohort lab" in shown and "onnxruntime=1.31.1" in shown
    assert "default" in edgefleet("device", "label", "dev-1", "--label", "site=roof").out
    cohorts = edgefleet("cohort", "list").out
    assert "site=lab" in cohorts and "(everyone else)" in cohorts


def test_fleet_that_a_person_cannot_stop(here: Any, edgefleet: Edgefleet) -> None:
    said = edgefleet("stop")
    assert said.code == 1 and "--reason" in said.err
    assert here.client.get("/v1/fleet/stop").json()["stopped"] is False
    assert "--lift" in edgefleet("stop", "--reason", "smoke").out
    assert here.client.get("/v1/fleet/stop").json()["reason"] == "smoke"
    assert edgefleet("stop", "--lift").code == 0
    assert here.client.get("/v1/fleet/stop").json()["stopped"] is False


def test_json_that_a_program_cannot_read(here: Any, edgefleet: Edgefleet) -> None:
    for words in (
        ("device", "token"),
        ("device", "list"),
        ("cohort", "create", "lab", "--label", "site=lab", "--label", "site=roof"),
        ("cohort", "list"),
        ("stop", "--reason", "smoke"),
        ("stop", "--lift"),
    ):
        said = edgefleet(*words, "--json")
        assert said.code == 0, said.err
        json.loads(said.out)
    (lab, _default) = json.loads(edgefleet("cohort", "list", "--json").out)
    assert lab["selector"] == {"site": ["lab", "roof"]}
    said = edgefleet("device", "show", "nobody", "--json")
    assert said.code == 1
    assert json.loads(said.out)["error"]["type"] == "urn:edgefleet:problem:no_such_device"


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (("device", "show", "nobody"), "edgefleet device list"),
        (("device", "list", "--cohort", "nowhere"), "edgefleet cohort create"),
        (("device", "token", "--label", "site"), "KEY=VALUE"),
        (("device", "token", "--label", "a=b", "--label", "a=c"), "one value"),
        (("cohort", "create", "../lab", "--label", "a=b"), "a-z"),
        (("cohort", "create", "default", "--label", "a=b"), "another name"),
        (("cohort", "create", "lab", "--label", "=b"), "KEY=VALUE"),
    ],
)
def test_error_that_does_not_say_what_to_do(
    here: Any, edgefleet: Edgefleet, words: tuple[str, ...], advice: str
) -> None:
    said = edgefleet(*words)
    assert said.code == 1
    assert said.err.startswith("error: ")
    assert advice in said.err
    assert "Traceback" not in said.err


def test_wrong_command_is_taken_for_a_failed_one(edgefleet: Edgefleet) -> None:
    assert edgefleet("device", "lst").code == 2
    assert edgefleet("cohort", "create", "lab").code == 2
    assert edgefleet("device", "token", "--hours", "soon").code == 2


def test_server_that_is_not_there(edgefleet: Edgefleet, tmp_path: Path, free_port: int) -> None:
    said = edgefleet("device", "list")
    assert said.code == 1 and "edgefleet server" in said.err
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "admin-token").write_text("ef_0\n")
    url = f"http://127.0.0.1:{free_port}"
    said = edgefleet("--url", url, "device", "list")
    assert said.code == 1 and url in said.err and "edgefleet server" in said.err
    assert edgefleet("--url", "http://[", "device", "list").code == 1


def test_wrong_token_that_is_printed(here: Any, edgefleet: Edgefleet) -> None:
    said = edgefleet("--token", "ef_very-secret", "device", "list")
    assert said.code == 1 and "admin-token" in said.err
    assert "very-secret" not in said.out + said.err


def test_terminal_that_obeys_a_name(here: Any, edgefleet: Edgefleet) -> None:
    assert "[red]x" in edgefleet("device", "show", "[red]x").err


@pytest.mark.parametrize("name", ["..", "../cohorts", "x?cohort=default", "x#", "%2e%2e"])
def test_name_that_asks_for_another_path(here: Any, edgefleet: Edgefleet, name: str) -> None:
    assert edgefleet("device", "show", name).code == 1
    assert edgefleet("device", "label", name, "--label", "a=b").code == 1


@pytest.mark.parametrize(
    ("then_ms", "text"),
    [(None, "never"), (900_000, "1 min ago"), (999_000, "1 s ago"), (2_000_000, "0 s ago")],
)
def test_time_that_runs_backwards(then_ms: int | None, text: str) -> None:
    assert ago(then_ms, 1_000_000) == text


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [(0, "0 s"), (8_000, "8 s"), (90_000, "1.5 min"), (5_400_000, "1.5 h"), (86_400_000, "1 d")],
)
def test_time_in_a_unit_that_nobody_reads(milliseconds: int, text: str) -> None:
    assert duration(milliseconds) == text


@pytest.mark.parametrize("url", ["nonsense", "ftp://127.0.0.1", "http://[::"])
def test_url_that_is_none(here: Any, edgefleet: Edgefleet, url: str) -> None:
    said = edgefleet("--url", url, "device", "list")
    assert said.code == 1
    assert "http://HOST:PORT" in said.err


def test_labels_that_are_all_lost_by_a_slip(here: Any, edgefleet: Edgefleet) -> None:
    said = edgefleet("device", "label", "door-17")
    assert said.code == 1
    assert "KEY=VALUE" in said.err
