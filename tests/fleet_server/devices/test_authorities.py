"""Guards from devices that an authority's rotation loses, and from a replaced one that goes on."""

from __future__ import annotations

import asyncio
import errno
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from typer.testing import CliRunner

from fleet_contract.enrolment import ANCHORS_PATH
from fleet_contract.manifest import Capabilities, manifest_path
from fleet_server.broker.client import MqttClient
from fleet_server.broker.errors import BrokerError, ConnectionLostError
from fleet_server.command_line import app as program
from fleet_server.dispatch.connection import BrokerAddress
from fleet_server.trust.catalogue.repository import Catalogue
from fleet_server.trust.founding import found
from tests.fleet_server.device_key import DeviceKey

PATH = "/v1/trust/authorities"
NAME = "dev-1"
DEADLINE_S = 60.0


def anchors(server: Any) -> Path:
    return Path(server.settings.data_dir / "pki" / "anchors.pem")


def enrol(server: Any, capabilities: Capabilities) -> DeviceKey:
    token = server.client.post("/v1/devices/tokens", json={"labels": {}}).json()["token"]
    key = DeviceKey()
    key.enrol(server.settings.devices_url, token, NAME, capabilities, anchors(server))
    return key


def step(server: Any, line: str, **how: bool) -> dict[str, Any]:
    answer = server.client.post(PATH, json={"line": line, **how})
    assert answer.status_code == 200, answer.text
    done: dict[str, Any] = answer.json()
    return done


def line_of(server: Any, name: str) -> dict[str, Any]:
    lines = server.client.get(PATH).json()["lines"]
    found: dict[str, Any] = next(item for item in lines if item["line"] == name)
    return found


def at_the_door(server: Any, context: ssl.SSLContext) -> httpx.Client:
    return httpx.Client(base_url=server.settings.devices_url, verify=context, timeout=DEADLINE_S)


def fetch(server: Any, key: DeviceKey, trusted: Path | None = None) -> httpx.Response:
    """What the door of devices says to this certificate; nothing is stored under this name."""
    context = key.context(trusted or anchors(server))
    with at_the_door(server, context) as client:
        return client.get("/v1/store/" + manifest_path("digits", "ab" * 32))


def refusal(server: Any, key: DeviceKey) -> str:
    answer = fetch(server, key)
    return str(answer.json()["type"]).rpartition(":")[2] if answer.status_code == 401 else ""


def renew(server: Any, key: DeviceKey) -> DeviceKey:
    fresh = DeviceKey()
    with at_the_door(server, key.context(anchors(server))) as client:
        answer = client.post("/v1/devices/renew", json={"csr": fresh.csr(NAME)})
    assert answer.status_code == 200, answer.text
    fresh.certificate = answer.json()["certificate"]
    return fresh


def test_rotation_that_loses_a_device(server: Any, capabilities: Capabilities) -> None:
    old = enrol(server, capabilities)
    assert line_of(server, "device")["behind"] == 0
    assert step(server, "device") == {
        "committed": True,
        "what": "another authority for device-ca",
        "behind": 1,
    }
    shown = line_of(server, "device")
    assert [item["standing"] for item in shown["authorities"]] == ["believed", "issues"]
    assert shown["overlaps"] and shown["names"] == [NAME] and "--finish" in shown["next_step"]
    # Both are believed, and who renews comes over.
    assert refusal(server, old) == ""
    new = renew(server, old)
    assert refusal(server, new) == ""
    assert line_of(server, "device")["behind"] == 0
    again = server.client.post(PATH, json={"line": "device"})
    assert again.status_code == 409 and "rotation_unfinished" in again.text
    step(server, "device", finish=True)
    assert refusal(server, old) == "former_authority"
    assert refusal(server, new) == ""
    server.wait_ready()
    entries = server.client.get("/v1/audit").json()["entries"]
    assert [item["action"] for item in entries].count("trust.authority") == 2


@pytest.mark.parametrize("lost", [True, False])
def test_certificate_of_a_replaced_authority_does_more_than_renew(
    server: Any, capabilities: Capabilities, lost: bool
) -> None:
    old = enrol(server, capabilities)
    step(server, "device", lost=lost)
    if not lost:
        step(server, "device", finish=True)
    assert refusal(server, old) == "former_authority"
    assert line_of(server, "device")["names"] == [NAME]
    assert refusal(server, renew(server, old)) == ""
    assert line_of(server, "device")["behind"] == 0


def test_device_that_was_off_during_several_rotations(
    server: Any, start_server: Callable[..., Any], capabilities: Capabilities
) -> None:
    key = enrol(server, capabilities)
    for how in ({}, {"finish": True}, {"lost": True}, {}, {"finish": True}):
        step(server, "device", **how)
    assert refusal(server, key)
    server.stop()
    server = start_server(port=server.settings.port, device_port=server.settings.device_port)
    fresh = renew(server, key)
    assert not refusal(server, fresh)
    wait(lambda: is_let_in(server, fresh), "the renewed device to be let in")
    assert line_of(server, "device")["behind"] == 0


def test_finish_without_a_beginning(server: Any) -> None:
    for line in ("device", "server"):
        answer = server.client.post(PATH, json={"line": line, "finish": True})
        assert answer.status_code == 409 and "no_rotation" in answer.text
    both = server.client.post(PATH, json={"line": "device", "finish": True, "lost": True})
    assert both.status_code == 422


def test_server_that_devices_do_not_know_during_an_overlap(
    server: Any, capabilities: Capabilities, tmp_path: Path
) -> None:
    key = enrol(server, capabilities)
    first = tmp_path / "first.pem"
    first.write_bytes(anchors(server).read_bytes())
    assert step(server, "server")["committed"]
    both = tmp_path / "both.pem"
    both.write_bytes(anchors(server).read_bytes())
    assert len(x509.load_pem_x509_certificates(both.read_bytes())) == 2
    assert server.app.state.catalogue.document("anchors.pem") == both.read_bytes()
    # Who has not fetched the new anchors yet still knows the server.
    for known in (first, both):
        assert fetch(server, key, known).status_code == 404
    step(server, "server", finish=True)
    assert fetch(server, key, both).status_code == 404
    with pytest.raises((httpx.ConnectError, ssl.SSLError)):
        fetch(server, key, first)
    published = server.app.state.catalogue.document("anchors.pem")
    assert published == anchors(server).read_bytes()
    assert len(x509.load_pem_x509_certificates(published)) == 1
    server.wait_ready()


def test_overlap_that_ends_before_the_anchors_are_signed(
    tmp_path: Path, start_server: Callable[..., Any], clock: Any, capabilities: Capabilities
) -> None:
    data_dir = tmp_path / "guarded"
    found(
        data_dir,
        tmp_path / "ceremony",
        fleet="home",
        keys=1,
        threshold=1,
        families_offline=False,
        random_bytes=clock.random_bytes,
        now_ms=clock.now_ms(),
    )
    server = start_server(data_dir=data_dir)
    key = enrol(server, capabilities)
    first = tmp_path / "first.pem"
    first.write_bytes(anchors(server).read_bytes())
    assert not step(server, "server")["committed"]
    refused = server.client.post(PATH, json={"line": "server", "finish": True})
    assert refused.status_code == 409 and "anchors_unsigned" in refused.text
    assert fetch(server, key, first).status_code == 404
    command = ["--data-dir", str(data_dir), "--url", server.settings.url, "trust"]
    said = CliRunner().invoke(
        program, [*command, "sign", "--keys", str(tmp_path / "ceremony"), "--yes"]
    )
    assert said.exit_code == 0, said.output
    said = CliRunner().invoke(program, [*command, "status"])
    assert "edgefleet trust rotate broker --finish" in said.output
    said = CliRunner().invoke(program, [*command, "rotate", "broker", "--finish"])
    assert said.exit_code == 0 and "wait for signatures" in said.output, said.output


def test_overlap_whose_anchors_met_a_full_disk_cannot_be_finished(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> bool:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Catalogue, "publish_document", full)
    refused = server.client.post(PATH, json={"line": "server"})
    assert refused.status_code == 503, refused.text
    monkeypatch.undo()
    again = server.client.post(PATH, json={"line": "server"})
    assert again.status_code == 409 and "--finish" in again.text
    catalogue = server.app.state.catalogue
    assert step(server, "server", finish=True)["committed"]
    assert catalogue.document(ANCHORS_PATH) == anchors(server).read_bytes()


def is_let_in(server: Any, key: DeviceKey) -> bool:
    """Whether the broker takes a connection with this certificate."""
    address = BrokerAddress.parse(server.app.state.broker_url)

    async def knock() -> bool:
        client = MqttClient(NAME)
        try:
            context = key.context(anchors(server))
            await client.connect(address.host, address.port, tls=context)
        except (OSError, BrokerError, ConnectionLostError):
            return False
        await client.disconnect()
        return True

    return asyncio.run(knock())


@pytest.mark.parametrize(
    "broker", ["embedded", pytest.param("mosquitto", marks=pytest.mark.broker)]
)
def test_broker_that_goes_on_believing_a_stolen_authority(
    broker: str,
    start_server: Callable[..., Any],
    capabilities: Capabilities,
    request: pytest.FixtureRequest,
) -> None:
    if broker == "mosquitto":
        request.getfixturevalue("require_mosquitto")
    server = start_server(broker=broker)
    server.wait_ready()
    old = enrol(server, capabilities)
    wait(lambda: is_let_in(server, old), "the device to be let in")
    step(server, "device", lost=True)
    new = renew(server, old)
    wait(lambda: is_let_in(server, new), "the new authority to be believed")
    wait(lambda: not is_let_in(server, old), "the stolen one to be refused")
    server.wait_ready()


@pytest.mark.broker
def test_broker_that_shows_the_replaced_authority(
    start_server: Callable[..., Any], capabilities: Capabilities, require_mosquitto: Path
) -> None:
    server = start_server(broker="mosquitto")
    server.wait_ready()
    key = enrol(server, capabilities)
    step(server, "server", lost=True)
    wait(lambda: is_let_in(server, key), "the broker to show what the anchors vouch for")
    server.wait_ready()


def wait(condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s, f"waited for {what}"
        time.sleep(0.05)
