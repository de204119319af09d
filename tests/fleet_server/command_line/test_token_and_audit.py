"""Guards from tokens and audit records that a person cannot make, check or take elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from fleet_server import data_folder

Edgefleet = Callable[..., Any]


@pytest.fixture
def here(server: Any) -> Any:
    data_folder.remember_url(server.settings.data_dir, server.settings.url)
    return server


def test_token_from_its_making_to_its_end(here: Any, edgefleet: Edgefleet) -> None:
    token = edgefleet("token", "create", "ann", "--role", "viewer").out.strip()
    assert edgefleet("--token", token, "device", "list").code == 0
    refused = edgefleet("--token", token, "stop", "--reason", "smoke")
    assert refused.code == 1 and "stop" in refused.err and token not in refused.err
    listed = edgefleet("token", "list").out
    assert "ann" in listed and "viewer" in listed and token not in listed
    (ann, _admin) = json.loads(edgefleet("token", "list", "--json").out)
    assert "revoked" in edgefleet("token", "revoke", ann["id"]).out
    assert edgefleet("--token", token, "device", "list").code == 1
    assert edgefleet("token", "create", "ann").code == 2
    assert "admin" in edgefleet("token", "create", "ann", "--role", "root").err


def test_ticket_and_program_that_the_audit_forgets(here: Any, edgefleet: Edgefleet) -> None:
    said = edgefleet("--change-ticket", "CHG-7", "stop", "--reason", "smoke")
    assert said.code == 0, said.err
    (entry,) = json.loads(edgefleet("audit", "list", "--count", "1", "--json").out)
    assert (entry["change_ticket"], entry["reason"]) == ("CHG-7", "smoke")
    assert entry["agent"].startswith("edgefleet/") and entry["environment"] == "dev"
    assert entry["command"] == "POST /v1/fleet/stop" and entry["duration_ms"] >= 0
    assert "smoke" in edgefleet("audit", "list").out
    assert edgefleet("--change-ticket", "a b", "stop", "--lift").code == 1


def test_audit_that_is_checked_elsewhere(here: Any, edgefleet: Edgefleet, tmp_path: Path) -> None:
    edgefleet("stop", "--reason", "smoke")
    edgefleet("stop", "--lift")
    folder = tmp_path / "export"
    said = edgefleet("audit", "export", str(folder))
    assert said.code == 0, said.err
    key = said.out.split("--key ")[1].strip()
    assert edgefleet("audit", "verify").code == 0
    elsewhere = ("audit", "verify", "--folder", str(folder))
    assert "--key" in edgefleet(*elsewhere).err
    said = edgefleet(*elsewhere, "--key", key)
    assert said.code == 0 and "intact" in said.out
    assert edgefleet(*elsewhere, "--key", "00" * 32).code == 3
    records = folder / "records.jsonl"
    records.write_text(records.read_text().replace("smoke", "Smoke"))
    said = edgefleet(*elsewhere, "--key", key)
    assert said.code == 3 and "NOT INTACT" in said.out
    (folder / "checkpoints.json").write_text("{")
    assert edgefleet(*elsewhere, "--key", key).code == 1


def test_record_that_was_altered_in_the_database(here: Any, edgefleet: Edgefleet) -> None:
    edgefleet("stop", "--reason", "smoke")
    with here.app.state.database.transaction() as session:
        session.connection().execute(
            text("UPDATE audit_record SET record = replace(record, 'smoke', 'Smoke')")
        )
    said = edgefleet("audit", "verify", "--json")
    assert said.code == 3 and json.loads(said.out)["intact"] is False


def test_report_of_a_release_that_is_not_there(here: Any, edgefleet: Edgefleet) -> None:
    said = edgefleet("audit", "report", "digits", "1.0.0")
    assert said.code == 1 and "There is no release" in said.err
    assert edgefleet("audit", "report", "../x", "1.0.0").code == 1
    assert edgefleet("audit", "report", "digits", "latest").code == 1
