"""Guards from ceremonies that a person cannot follow, and from roots that nobody keeps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import SIGNER_FOR_URI_SCHEME, CryptoSigner

from fleet_server import data_folder
from fleet_server.command_line.connection import Connection

Edgefleet = Callable[..., Any]


@pytest.fixture
def here(server: Any) -> Any:
    data_folder.remember_url(server.settings.data_dir, server.settings.url)
    return server


def test_root_that_was_changed_after_the_backup_is_lost_with_the_server(
    here: Any, edgefleet: Edgefleet, tmp_path: Path
) -> None:
    offline = tmp_path / "offline"
    moved = edgefleet("trust", "rotate", "root", "--offline", str(offline), "--yes")
    assert moved.code == 0 and "give each holder" in moved.out, moved.err
    catalogue = here.app.state.catalogue
    assert (offline / "2.root.json").read_bytes() == catalogue.root_bytes
    waits = edgefleet("trust", "rotate", "timestamp")
    assert "waits for signatures" in waits.out and "trust sign" in waits.out
    status = json.loads(edgefleet("trust", "status", "--json").out)
    assert len(status["pending"]) == 1
    for number in (1, 2):
        holder = tmp_path / f"holder-{number}"
        holder.mkdir()
        (offline / f"root-{number}.pem").rename(holder / "root.pem")
        said = edgefleet("trust", "sign", "--keys", str(holder), "--yes")
        assert said.code == 0, said.err
        assert (holder / "3.root.json").exists() is (number == 2)
    assert (tmp_path / "holder-2" / "3.root.json").read_bytes() == catalogue.root_bytes


def test_threshold_that_is_ignored(here: Any, edgefleet: Edgefleet) -> None:
    said = edgefleet("trust", "rotate", "root", "--threshold", "3")
    assert said.code == 1 and "--offline" in said.err
    assert here.app.state.catalogue.versions()["root"] == 1


def test_nothing_to_sign_or_nothing_to_sign_with(
    here: Any, edgefleet: Edgefleet, tmp_path: Path
) -> None:
    assert "--keys DIR" in edgefleet("trust", "sign").err
    empty = edgefleet("trust", "sign", "--keys", str(tmp_path))
    assert empty.code == 1 and "no usable private key" in empty.err
    folder = tmp_path / "offline"
    edgefleet("trust", "rotate", "root", "--offline", str(folder), "--yes")
    said = edgefleet("trust", "sign", "--keys", str(folder))
    assert said.code == 1 and "Nothing waits" in said.err


@pytest.fixture
def waiting(here: Any, edgefleet: Edgefleet, tmp_path: Path) -> Path:
    """Another director waits for the key of targets, which is in the folder."""
    folder = tmp_path / "targets"
    words = ("--keys", "1", "--threshold", "1", "--yes")
    assert edgefleet("trust", "rotate", "targets", "--offline", str(folder), *words).code == 0
    assert "waits for signatures" in edgefleet("trust", "rotate", "director").out
    return folder


def test_signer_is_not_told_which_director_goes(
    here: Any, edgefleet: Edgefleet, waiting: Path
) -> None:
    old, kept = (key.keyid[:12] for key in here.app.state.keyring.keyset.directors)
    said = edgefleet("trust", "sign", "--keys", str(waiting), "--yes")
    assert said.code == 0, said.err
    assert f"keyset: directors {old}, {kept} → {kept}, " in said.err
    assert "generation" not in said.err, "what stays is not told as if it were new"


@pytest.mark.parametrize("lie", ["hidden", "another", "another before"])
def test_server_that_shows_another_keyset_than_would_be_signed(
    here: Any, edgefleet: Edgefleet, waiting: Path, lie: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever broke into the server wants the signature of a director that nobody has seen."""
    get, text = Connection.get, Connection.text

    def lying_get(self: Connection, path: str, **parameters: Any) -> Any:
        found = get(self, path, **parameters)
        for proposal in found.get("proposals", []):
            if lie == "hidden":
                proposal["documents"] = {}
            elif lie == "another":
                proposal["documents"]["keyset.json"] = "e30="
        return found

    def lying_text(self: Connection, path: str, **parameters: Any) -> str:
        return "{}" if lie == "another before" else text(self, path, **parameters)

    monkeypatch.setattr(Connection, "get", lying_get)
    monkeypatch.setattr(Connection, "text", lying_text)
    said = edgefleet("trust", "sign", "--keys", str(waiting), "--yes")
    assert said.code == 1 and "Do not sign" in said.err
    assert here.app.state.catalogue.changes.pending, "nothing was signed"


def test_holder_gets_a_key_of_another_fleet(edgefleet: Edgefleet, tmp_path: Path) -> None:
    """Two fleets are begun in one folder: which keys are whose has to be said."""
    offline = str(tmp_path / "offline")
    for fleet, expected in (("one", "root-1.pem, root-2.pem"), ("two", "root-3.pem, root-4.pem")):
        folder = str(tmp_path / fleet)
        words = ("--offline", offline, "--keys", "2", "--fleet", fleet)
        said = edgefleet("--data-dir", folder, "trust", "init", *words)
        assert said.code == 0 and expected in said.out, said.err


class GuardedSigner(CryptoSigner):
    """A key that wants its PIN before it signs, as those of an HSM do."""

    @classmethod
    def from_priv_key_uri(
        cls, priv_key_uri: str, public_key: Any, secrets_handler: Any = None
    ) -> CryptoSigner:
        if secrets_handler is None or secrets_handler("pin") != "7 locks":
            raise ValueError("the PIN is wrong")
        path = Path(priv_key_uri.partition(":")[2])
        return CryptoSigner(load_pem_private_key(path.read_bytes(), None))


@pytest.mark.parametrize("given", ["environment", "asked", "wrong"])
def test_key_that_wants_a_pin_signs_nothing(
    edgefleet: Edgefleet, waiting: Path, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SIGNER_FOR_URI_SCHEME, "guarded", GuardedSigner)
    monkeypatch.delenv("EDGEFLEET_HSM_PIN", raising=False)
    if given == "asked":
        hidden = {True: "7 locks", False: ""}
        monkeypatch.setattr("typer.prompt", lambda *_, **how: hidden[how["hide_input"]])
    else:
        pin = "7 locks" if given == "environment" else "8 locks"
        monkeypatch.setenv("EDGEFLEET_HSM_PIN", pin)
    said = edgefleet("trust", "sign", "--key", f"guarded:{waiting}/targets-1.pem", "--yes")
    assert "locks" not in said.out + said.err
    if given == "wrong":
        assert said.code == 1 and "cannot be used: ValueError: the PIN is wrong" in said.err
    else:
        assert said.code == 0 and "committed" in said.out, said.err


def test_server_that_was_never_restored_is_said_not_to_lead(
    edgefleet: Edgefleet, waiting: Path
) -> None:
    said = edgefleet("trust", "after-restore", "--wait", "0")
    assert said.code == 0, said.err
    assert "leads as before" in said.out and "does not lead" not in said.out
