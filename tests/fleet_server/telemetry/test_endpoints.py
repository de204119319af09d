"""Guards what operators are shown of a device's reports, on a running server."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from fleet_contract.enrolment import read_token
from fleet_contract.manifest import Capabilities
from fleet_contract.messages.report import Pairs, Report, Role, Window
from fleet_contract.sketches import latency
from fleet_contract.topics import DeviceChannel
from fleet_server.dispatch.inbound import Inbound
from fleet_server.telemetry import service
from tests.fleet_server.device_key import DeviceKey

RELEASE = "ab" * 32


@pytest.fixture
def device(server: Any, capabilities: Capabilities) -> str:
    """A device that has reported three windows of one model and one of another."""
    token = server.client.post("/v1/devices/tokens", json={"labels": {}}).json()["token"]
    request = {
        "secret": read_token(token).secret,
        "device": "dev-1",
        "capabilities": msgspec.to_builtins(capabilities),
        "csr": DeviceKey().csr("dev-1"),
    }
    assert server.anonymous.post("/v1/devices/enrol", json=request).status_code == 201
    with server.app.state.database.transaction() as session:
        for start_ms, model in [
            (1_000, "digits"),
            (2_000, "digits"),
            (3_000, "digits"),
            (9, "faces"),
        ]:
            window = Window(
                *(RELEASE, Role.SHADOW, start_ms, 1_000, 4, True, 3, 1),
                *(latency.of([100, 200, 40_000]), "cd" * 32, None, None, Pairs(3, 2, 1)),
            )
            report = Report("00" * 8, [window])
            message = Inbound("home", "dev-1", DeviceChannel.REPORT, model, report, start_ms + 5)
            service.record_reports(session, [message], 0, schema_of=lambda _, __: None)
    return "dev-1"


def test_newest_windows_come_first_with_their_figures(server: Any, device: str) -> None:
    answer = server.client.get(f"/v1/devices/{device}/reports?model=digits&count=2")
    assert answer.status_code == 200
    first, second = answer.json()["windows"]
    assert (first["start_ms"], second["start_ms"]) == (3_000, 2_000)
    assert (first["predictions"], first["errors"], first["role"]) == (3, 1, "shadow")
    assert first["pairs"] == {"rows": 3, "agreements": 2, "slower": 1}
    assert first["latency"]["p50_us"] == pytest.approx(200, rel=0.02)
    assert first["latency"]["count"] == 3
    assert (first["received_ms"], first["sketches"]) == (3_005, False)
    every = server.client.get(f"/v1/devices/{device}/reports").json()["windows"]
    assert [window["model"] for window in every] == ["digits", "digits", "digits", "faces"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/devices/nobody/reports", 404),
        ("/v1/devices/dev-1/reports?model=../x", 422),
        ("/v1/devices/dev-1/reports?model=digits%0A", 422),
        ("/v1/devices/dev-1/reports?count=0", 422),
        ("/v1/devices/dev-1/reports?count=100000", 422),
    ],
)
def test_bad_requests_are_problems(server: Any, device: str, path: str, status: int) -> None:
    answer = server.client.get(path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"


def test_strangers_see_nothing(server: Any, device: str) -> None:
    assert server.anonymous.get(f"/v1/devices/{device}/reports").status_code == 401
