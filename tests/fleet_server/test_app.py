"""Guards from a server that changes something on bad input, tells secrets, or starts half."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from sqlalchemy import text

from fleet_contract import codec, topics
from fleet_contract.enrolment import EnrolmentAnswer, read_token
from fleet_contract.manifest import Capabilities
from fleet_contract.messages.presence import Presence
from fleet_contract.messages.progress import ModelProgress, Phase, Progress
from fleet_contract.messages.report import read_ack
from fleet_contract.topics import DeviceChannel, device
from fleet_contract.trust.checks import check_assignment, check_stop
from fleet_contract.trust.keyset import read_keyset
from fleet_server.database import Database
from fleet_server.errors import StartError
from tests.fleet_server.device_key import DeviceKey

Start = Callable[..., Any]


def anchors(server: Any) -> Path:
    return Path(server.settings.data_dir / "pki" / "anchors.pem")


def enrol(
    server: Any, capabilities: Capabilities, name: str, **labels: str
) -> tuple[EnrolmentAnswer, ssl.SSLContext]:
    """The answer, and what the device then connects with."""
    made = server.client.post("/v1/devices/tokens", json={"labels": labels}).json()
    key = DeviceKey()
    url = server.settings.devices_url
    answer = key.enrol(url, made["token"], name, capabilities, anchors(server))
    return answer, key.context(anchors(server))


def table_contents(server: Any) -> dict[str, list[Any]]:
    database: Database = server.app.state.database
    with database.reading() as session:
        return {
            table: [
                tuple(row) for row in session.connection().execute(text(f"SELECT * FROM {table}"))
            ]
            for table in ("device", "cohort", "enrolment_token", "control_message", "fleet_stop")
        }


def check_problem(answer: httpx.Response, status: int, code: str | None = None) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert problem["status"] == status
    assert problem["correlation_id"] == answer.headers["x-correlation-id"]
    assert problem["title"] and problem["detail"]
    assert "Traceback" not in answer.text
    if code is not None:
        assert problem["type"] == f"urn:edgefleet:problem:{code}"
    return problem


class Listener:
    """An MQTT client that keeps what it was sent."""

    def __init__(
        self, url: str, filters: tuple[str, ...], name: str, context: ssl.SSLContext
    ) -> None:
        self.messages: dict[str, bytes] = {}
        self.filters = filters
        self.subscribed = threading.Event()
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, name, protocol=mqtt.MQTTv5)
        self.client.tls_set_context(context)
        self.client.on_connect = self._subscribe
        self.client.on_subscribe = lambda *_: self.subscribed.set()
        self.client.on_message = self._keep
        address = httpx.URL(url)
        self.client.connect(address.host, address.port or 0)
        self.client.loop_start()

    def _subscribe(self, client: mqtt.Client, *_: object) -> None:
        client.subscribe([(topic_filter, 1) for topic_filter in self.filters])

    def _keep(self, _client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        self.messages[message.topic] = bytes(message.payload)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
def until() -> Callable[[Callable[[], object], str], None]:
    def wait(condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, f"waited for {what}"
            time.sleep(0.005)

    return wait


def test_enrolled_device_learns_nothing_from_the_broker(
    server: Any, capabilities: Capabilities, until: Any
) -> None:
    answer, context = enrol(server, capabilities, "dev-1", site="lab")
    keyset = read_keyset(server.app.state.keyring.keyset_bytes, fleet="home", held=None)
    filters = (topics.stop("home"), device("home", "dev-1", DeviceChannel.ASSIGNMENT))
    listener = Listener(answer.broker, filters, "dev-1", context)
    stop_topic, own_topic = (
        "fleet/v1/home/stop",
        device("home", "dev-1", DeviceChannel.ASSIGNMENT),
    )
    until(lambda: {stop_topic, own_topic} <= set(listener.messages), "retained messages")
    held = check_stop(listener.messages[stop_topic], keyset=keyset, fleet="home", held=None)
    assert not held.document.stopped
    assigned = check_assignment(
        listener.messages[own_topic], keyset=keyset, fleet="home", device="dev-1", held=None
    )
    assert assigned.document.cohort == "default"
    body = {"name": "lab", "selector": {"site": "lab"}}
    assert server.client.post("/v1/cohorts", json=body).json()["devices"] == 1

    def cohort() -> str:
        return check_assignment(
            listener.messages[own_topic],
            keyset=keyset,
            fleet="home",
            device="dev-1",
            held=assigned.acceptance,
        ).document.cohort

    until(lambda: cohort() == "lab", "the new assignment")
    server.client.post("/v1/fleet/stop", json={"stopped": True, "reason": "smoke"})
    until(
        lambda: (
            check_stop(
                listener.messages[stop_topic], keyset=keyset, fleet="home", held=held.acceptance
            ).document.stopped
        ),
        "the stop",
    )
    listener.close()


def test_what_a_device_says_is_neither_stored_nor_acknowledged(
    server: Any, capabilities: Capabilities, until: Any
) -> None:
    answer, context = enrol(server, capabilities, "dev-1")
    server.wait_ready()
    ack_topic = device("home", "dev-1", DeviceChannel.ACK)
    listener = Listener(answer.broker, (ack_topic,), "dev-1", context)
    # An acknowledgement is not retained: who comes later misses it.
    until(listener.subscribed.is_set, "the subscription")
    session = "ab" * 8
    birth = Presence(True, 1, session, 1, "0.1.0", None, {})
    listener.client.publish(
        device("home", "dev-1", DeviceChannel.PRESENCE), codec.encode_msgpack(birth), 1, True
    )
    progress = Progress(
        session, 1, 5, [ModelProgress("detector", "", Phase.IDLE, "", "", "", 1, 0, 0)]
    )
    topic = device("home", "dev-1", DeviceChannel.PROGRESS)
    for payload in (b"\xc1 not messagepack", codec.encode_msgpack(progress)):
        listener.client.publish(topic, payload, 1)
    until(lambda: ack_topic in listener.messages, "the acknowledgement")
    assert read_ack(listener.messages[ack_topic]).progress == 5
    shown = server.client.get("/v1/devices/dev-1").json()
    assert shown["online"] is True
    assert [item["phase"] for item in shown["progress"]] == ["idle"]
    listener.close()


BAD_CALLS = [
    ("POST", "/v1/cohorts", b"{", 422),
    ("POST", "/v1/cohorts", b"[]", 422),
    ("POST", "/v1/cohorts", b'{"name": "lab"}', 422),
    ("POST", "/v1/cohorts", b'{"name": "lab", "selector": {"a": "b"}, "prio": 3}', 422),
    ("POST", "/v1/cohorts", b'{"name": "../lab", "selector": {"a": "b"}}', 422),
    ("POST", "/v1/cohorts", b'{"name": "lab", "selector": {"a": 1e400}}', 422),
    ("POST", "/v1/cohorts", b'{"name": "lab", "selector": {"a": "\\ud800"}}', 422),
    ("POST", "/v1/cohorts", b"\xff\xfe\x00", 422),
    ("POST", "/v1/cohorts", b"[" * 100_000, 422),
    ("POST", "/v1/cohorts", b'{"name": "lab", "priority": 1' + b"0" * 5_000 + b"}", 422),
    ("POST", "/v1/devices/tokens", b'{"valid_ms": 99999999999999999999}', 422),
    ("POST", "/v1/devices/tokens", b'{"device": "a/../b"}', 422),
    ("POST", "/v1/fleet/stop", b'{"stopped": "perhaps"}', 422),
    ("POST", "/v1/fleet/stop", b'{"stopped": true}', 422),
    ("PUT", "/v1/devices/nobody/labels", b'{"labels": {}}', 404),
    ("PUT", "/v1/devices/..%2f..%2fetc/labels", b'{"labels": {}}', 404),
    ("POST", "/v1/devices/enrol", b"{}", 422),
    ("POST", "/v1/devices/enrol", b'{"secret": "' + b"0" * 70_000 + b'"}', 413),
    ("GET", "/v1/devices?count=0", b"", 422),
    ("GET", "/v1/devices?cohort=nowhere", b"", 404),
    ("GET", "/v1/devices/%00", b"", 422),
    ("GET", "/v1/nowhere", b"", 404),
    ("DELETE", "/v1/devices", b"", 405),
    ("POST", "/v1/cohorts", b"x" * 1_100_000, 413),
]


def test_bad_call_changes_something(server: Any) -> None:
    before = table_contents(server)
    for method, path, body, status in BAD_CALLS:
        headers = {"Content-Type": "application/json"}
        answer = server.client.request(method, path, content=body, headers=headers)
        # What is not even JSON may be a 400.
        check_problem(answer, 400 if (status, answer.status_code) == (422, 400) else status)
    assert table_contents(server) == before


def test_body_that_never_ends(server: Any) -> None:
    def endless() -> Any:
        for _ in range(100):
            yield b" " * 100_000

    try:
        answer = server.client.post("/v1/cohorts", content=endless())
    except httpx.TransportError:
        # The server answered and cut the connection while the client was still talking.
        return
    check_problem(answer, 413)


@pytest.mark.parametrize("value", ["", "Bearer", "Bearer x", "Basic eDp5", "Bearer " + "a" * 9_000])
def test_door_that_is_open(server: Any, value: str) -> None:
    paths = server.app.openapi()["paths"]
    public = {
        "/v1/trust/metadata/{name}",
        "/v1/trust/roots/{digest}",
        "/v1/trust/targets/{name}",
        "/v1/devices/enrol",
        "/health",
        "/ready",
        "/metrics",
    }
    before = table_contents(server)
    for path, methods in paths.items():
        if path in public:
            continue
        for method in methods:
            answer = server.anonymous.request(
                method.upper(), path.replace("{name}", "dev-1"), headers={"Authorization": value}
            )
            # Soon the address has failed too often; that opens no door either.
            assert answer.status_code in {401, 429}, (method, path, answer.text)
            assert ("www-authenticate" in answer.headers) == (answer.status_code == 401)
    assert table_contents(server) == before


def test_secret_in_the_log_or_in_a_problem(
    log_file: Path, server: Any, capabilities: Capabilities
) -> None:
    server.wait_ready()
    enrol(server, capabilities, "dev-1")
    token = (server.settings.data_dir / "admin-token").read_text().strip()
    made = server.client.post("/v1/devices/tokens", json={}).json()["token"]
    secret = read_token(made).secret
    keys = server.settings.data_dir / "trust" / "keys"
    root_key = (keys / "root.pem").read_text().splitlines()[1]
    pki = server.settings.data_dir / "pki"
    authority_key = (pki / "device-1.key").read_text().splitlines()[1]
    director = (server.settings.data_dir / "keys" / "director.key").read_text().strip()
    problems = ""
    for body in (
        {"secret": secret, "device": "../x", "capabilities": None},
        {"secret": secret + "0" * 100, "device": "dev-2"},
        {
            "secret": secret,
            "device": "dev-1",
            "capabilities": json.loads(codec.encode_json(capabilities)),
        },
    ):
        refused = server.anonymous.post("/v1/devices/enrol", json=body)
        assert refused.status_code >= 400
        problems += refused.text
    audit = server.client.get("/v1/audit").text
    log = log_file.read_text()
    assert "connected to the broker" in log
    for told in (problems, audit, log, server.anonymous.get("/metrics").text):
        for hidden in (secret, token, authority_key, root_key, director, made):
            assert hidden not in told


def test_call_that_cannot_be_found_again(server: Any) -> None:
    answer = server.client.post(
        "/v1/fleet/stop",
        json={"stopped": True, "reason": "smoke"},
        headers={"X-Correlation-Id": "call-17"},
    )
    assert answer.headers["x-correlation-id"] == "call-17"
    entry = server.client.get("/v1/audit").json()["entries"][0]
    assert (entry["correlation_id"], entry["action"], entry["user"]) == (
        *("call-17", "fleet.stop"),
        "admin",
    )
    # A refused call of somebody known leaves an entry, too.
    server.client.post(
        "/v1/fleet/stop", json={"stopped": True}, headers={"X-Correlation-Id": "call-18"}
    )
    entry = server.client.get("/v1/audit").json()["entries"][0]
    assert (entry["correlation_id"], entry["outcome"]) == ("call-18", "refused")


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, "{}", "ü"])
def test_correlation_id_that_spoils_the_log(server: Any, given: str) -> None:
    answer = server.anonymous.get("/health", headers={"X-Correlation-Id": given.encode()})
    assert answer.headers["x-correlation-id"] != given
    assert len(answer.headers["x-correlation-id"]) == 16


def test_stack_trace_that_reaches_the_client(
    log_file: Path, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*_: object, **__: object) -> None:
        raise ZeroDivisionError("the password is hunter2")

    monkeypatch.setattr("fleet_server.devices.service.list_cohorts", explode)
    answer = server.client.get("/v1/cohorts")
    problem = check_problem(answer, 500, "internal")
    # The log has it, under the id that the client was given.
    lines = [json.loads(line) for line in log_file.read_text().splitlines()]
    found = [line for line in lines if line.get("correlation_id") == problem["correlation_id"]]
    assert any("ZeroDivisionError" in line.get("exception", "") for line in found)
    assert "hunter2" not in answer.text and "ZeroDivision" not in answer.text


def test_endpoint_without_documentation(server: Any) -> None:
    document = server.app.openapi()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            where = f"{method} {path}"
            assert operation.get("summary") and operation.get("description"), where
            assert {"404", "422", "503"} <= set(operation["responses"]), where
            body = operation.get("requestBody")
            if body is not None:
                assert "example" in json.dumps(_resolved(body, document)), where
            if path.startswith("/v1"):
                success = next(
                    answer for status, answer in operation["responses"].items() if status[0] == "2"
                )
                content = success.get("content", {}).get("application/json")
                if content is not None:
                    assert "example" in json.dumps(_resolved(content, document)), where


def _resolved(part: Any, document: dict[str, Any], depth: int = 0) -> Any:
    if isinstance(part, dict):
        if "$ref" in part and depth < 8:
            name = part["$ref"].rsplit("/", 1)[1]
            return _resolved(document["components"]["schemas"][name], document, depth + 1)
        return {key: _resolved(value, document, depth) for key, value in part.items()}
    if isinstance(part, list):
        return [_resolved(value, document, depth) for value in part]
    return part


def test_server_that_calls_itself_ready_without_its_database(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.wait_ready()
    monkeypatch.setattr(server.app.state.database, "is_ready", lambda: False)
    answer = server.anonymous.get("/ready")
    assert answer.status_code == 503
    assert answer.json()["checks"]["database"] is False
    assert server.anonymous.get("/health").status_code == 200


def test_metrics_that_grow_with_the_names_of_devices(server: Any) -> None:
    server.wait_ready()
    for number in range(5):
        server.client.get(f"/v1/devices/dev-{number}")
        server.anonymous.request(f"METHOD{number}", f"/{number}")
    exposition = server.anonymous.get("/metrics").text
    assert (
        'edgefleet_http_requests_total{method="GET",path="/v1/devices/{name}",status="404"} 5.0'
        in (exposition)
    )
    assert "dev-1" not in exposition and "METHOD" not in exposition
    for name in ("publisher_published", "ingest_messages", "broker_connections"):
        assert f"\nedgefleet_{name} " in exposition


def test_second_server_on_the_same_folder(start_server: Start) -> None:
    first = start_server()
    with pytest.raises(StartError) as refused:
        start_server(data_dir=first.settings.data_dir)
    assert refused.value.code == "data_dir_in_use"
    assert first.anonymous.get("/health").status_code == 200


def test_restart_changes_what_devices_hold(start_server: Start, capabilities: Capabilities) -> None:
    first = start_server()
    answer, _ = enrol(first, capabilities, "dev-1")
    before = table_contents(first)
    first.stop()
    second = start_server()
    assert table_contents(second) == before
    assert second.app.state.device_broker_url == answer.broker
    assert second.client.get("/v1/devices/dev-1").status_code == 200


def test_folder_that_cannot_be_written(start_server: Start, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StartError) as refused:
        start_server(data_dir=tmp_path / "file" / "data")
    assert refused.value.code == "data_dir_unwritable"


def test_broker_port_that_is_taken(start_server: Start, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(StartError) as refused:
        start_server(broker_port=taken.getsockname()[1])
    assert refused.value.code == "no_broker"
    # What had started before the failure is gone: the folder can be used again.
    start_server()


@pytest.mark.parametrize("broker", ["nonsense", "http://127.0.0.1:1", "mqtt://", "mqtt://h:x"])
def test_broker_that_cannot_be(start_server: Start, broker: str) -> None:
    with pytest.raises(StartError) as refused:
        start_server(broker=broker)
    assert "--broker" in refused.value.advice
