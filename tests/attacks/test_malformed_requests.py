"""Whatever is sent to the API, it answers problem+json in the 400s, and nothing is changed.

The table of requests is generated from the OpenAPI document, so that a new endpoint is attacked
from its first day on.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from device_agent.shell.workshop import Workshop
from fleet_server.app import create_app
from fleet_server.settings import Settings
from tests.attacks.battlefield import Battlefield

pytestmark = pytest.mark.slow

DOCUMENT = create_app(Settings(data_dir=Path("never-made"))).openapi()
METHODS = ("get", "post", "put", "patch", "delete")
ENDPOINTS = [
    (method.upper(), path)
    for path, operations in DOCUMENT["paths"].items()
    for method in METHODS
    if method in operations
]
PUBLIC = {
    "/health",
    "/ready",
    "/metrics",
    "/v1/trust/metadata/{name}",
    "/v1/trust/roots/{digest}",
    "/v1/trust/targets/{name}",
}
"""Everybody may read these; they tell nothing that a device or a probe does not need."""
ENROLMENT = "/v1/devices/enrol"
"""The token in its body is the authentication."""
BAD_NAMES = [
    "..%2f..%2fetc%2fpasswd",
    "%00",
    "%ff%fe",
    "UPPER%20CASE",
    "%F0%9F%A6%84",
    "'%3B%20DROP%20TABLE%20device%3B--",
    "x" * 3000,
]
BAD_NUMBERS = ["abc", "-1", "1e9", "NaN", str(10**30), ""]
BAD_BODIES = [
    b"",
    b"{",
    b"null",
    b"[]",
    b"17",
    b'"text"',
    b"\xff\xfe\x00",
    b'{"no_such_field": 1}',
    b"[" * 20_000,
    b'{"a":' * 5_000,
    b'{"version": NaN}',
    b" " * (1024 * 1024 + 1),
]
WRONG_VALUES: list[Any] = [
    None,
    -1,
    10**40,
    1.5,
    "",
    "\x00",
    "x" * 100_000,
    [],
    {"a": {"b": []}},
    True,
]
"""A field may well allow some of these; what it allows is taken from its schema."""
LEASE = "controller_lease"
AUDIT = "audit_record"


@dataclass
class Attempt:
    """One bad request, and what it is called when it gets through."""

    method: str
    path: str
    content: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.method} {self.path[:120]} {self.content[:80]!r} {self.headers}"


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory, workshop: Workshop) -> Iterator[Battlefield]:
    """A server without devices: only a request could change something."""
    found = Battlefield(tmp_path_factory.mktemp("quiet"), workshop)
    found.start_server()
    yield found
    found.stop_server()


def attempts(method: str, path: str, token: str) -> Iterator[Attempt]:
    operation = DOCUMENT["paths"][path][method.lower()]
    known: dict[str, str] = {"Authorization": f"Bearer {token}"}
    parameters = operation.get("parameters", [])
    in_path = [item["name"] for item in parameters if item["in"] == "path"]
    fine = path
    for name in in_path:
        fine = fine.replace(f"{{{name}}}", "nobody")
    if path not in PUBLIC and path != ENROLMENT:
        for value in ("", "Bearer", "Bearer wrong", "Basic bm9ib2R5Om5vYm9keQ==", "Bearer \x7f"):
            yield Attempt(method, fine, headers={"Authorization": value} if value else {})
    for bad in BAD_NAMES if in_path else ():
        target = path
        for name in in_path:
            target = target.replace(f"{{{name}}}", bad)
        yield Attempt(method, target, b"{}", known)
    for item in parameters:
        if item["in"] == "query" and "integer" in json.dumps(item["schema"]):
            for bad in BAD_NUMBERS:
                yield Attempt(method, f"{fine}?{item['name']}={quote(bad)}", headers=known)
    for body, kind in bad_bodies(operation):
        yield Attempt(method, fine, body, known | ({"Content-Type": kind} if kind else {}))
    for other in METHODS:
        if other not in DOCUMENT["paths"][path]:
            yield Attempt(other.upper(), fine, b"{}", known)


def bad_bodies(operation: dict[str, Any]) -> Iterator[tuple[bytes, str]]:
    """Bodies and their media types, for an operation that takes one."""
    if "requestBody" not in operation:
        return
    for body in BAD_BODIES:
        for kind in ("", "application/json", "multipart/form-data", "text/plain"):
            yield body, kind
    for body in wrong_fields(operation):
        yield body, "application/json"
    if "multipart/form-data" in operation["requestBody"]["content"]:
        for body in bad_forms():
            yield body, "multipart/form-data; boundary=b"


def wrong_fields(operation: dict[str, Any]) -> Iterator[bytes]:
    """The example of each field but one, which has a value of a type that its schema excludes."""
    content = operation["requestBody"]["content"].get("application/json", {})
    reference = content.get("schema", {}).get("$ref", "")
    if not reference:
        return
    schema = DOCUMENT["components"]["schemas"][reference.rsplit("/", 1)[1]]
    examples = {
        name: item["examples"][0]
        for name, item in schema["properties"].items()
        if item.get("examples")
    }
    for name, item in schema["properties"].items():
        for value in WRONG_VALUES:
            if not allows(item, value):
                yield json.dumps({**examples, name: value}).encode()


def bad_forms() -> Iterator[bytes]:
    """Forms that lack a part, have one too many or one twice, or end too early."""
    parts = {
        "version": b"1.0.0",
        "model": b"no model",
        "calibration": b"no array",
        "golden": b"no array",
    }
    for left_out in parts:
        yield form([item for item in parts.items() if item[0] != left_out])
    yield form([*parts.items(), ("no_such_field", b"1")])
    yield form([*parts.items(), ("version", b"1.0.1")])
    for version in (b"latest", b"0", b"", b"\xff", b"1.0.0/../../x", b"9" * 300):
        yield form([("version", version), *list(parts.items())[1:]])
    for option in (("output_kind", b"poetry"), ("agreement", b"2"), ("metadata", b"{")):
        yield form([*parts.items(), option])
    whole = form(list(parts.items()))
    yield whole[: len(whole) // 2]
    yield whole[:-6]


def form(parts: list[tuple[str, bytes]]) -> bytes:
    head = b'--b\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n'
    files = ("model", "calibration", "golden")
    body = b"".join(
        head % (name.encode(), b'; filename="x"' if name in files else b"", value)
        for name, value in parts
    )
    return body + b"--b--\r\n"


def allows(schema: dict[str, Any], value: object) -> bool:
    """Say whether a value might have the type that a schema asks for."""
    if "anyOf" in schema:
        return any(allows(item, value) for item in schema["anyOf"])
    kinds = {
        "string": isinstance(value, str),
        "integer": isinstance(value, int | float),
        "number": isinstance(value, int | float),
        "boolean": isinstance(value, bool | int | float | str),
        "array": isinstance(value, list),
        "object": isinstance(value, dict),
        "null": value is None,
    }
    kind = schema.get("type")
    return kind is None or kinds[kind]


def contents(data_dir: Path) -> dict[str, list[Any]]:
    """Every row of every table, except the controller's lease and the audit of refusals."""
    with closing(sqlite3.connect(data_dir / "fleet.sqlite")) as database:
        names = [
            name
            for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        ]
        found = {
            name: sorted(map(repr, database.execute(f'SELECT * FROM "{name}"'))) for name in names
        }
        found.pop(LEASE)
        found.pop("audit_head")
        found[AUDIT] = [
            repr(row)
            for row in database.execute(
                f"SELECT record FROM {AUDIT} WHERE json_extract(record, '$.outcome') != 'refused'"
            )
        ]
    return found


@pytest.mark.parametrize(("method", "path"), ENDPOINTS, ids=[" ".join(item) for item in ENDPOINTS])
def test_malformed_request_changes_something(quiet: Battlefield, method: str, path: str) -> None:
    data_dir = quiet.app.state.settings.data_dir
    token = (data_dir / "admin-token").read_text().strip()
    before = contents(data_dir)
    tried = 0
    wrong = []
    with httpx.Client(base_url=quiet.app.state.settings.url, timeout=60) as client:
        for attempt in attempts(method, path, token):
            answer = client.request(
                attempt.method, attempt.path, content=attempt.content, headers=attempt.headers
            )
            tried += 1
            if not is_refusal(answer):
                wrong.append(f"{attempt} -> {answer.status_code} {answer.text[:200]}")
    assert not wrong, "\n".join(wrong)
    assert tried > 0
    assert contents(data_dir) == before


def is_refusal(answer: httpx.Response) -> bool:
    if not (
        400 <= answer.status_code < 500
        and answer.headers["content-type"] == "application/problem+json"
    ):
        return False
    problem = answer.json()
    return bool(
        problem["status"] == answer.status_code
        and problem["title"]
        and problem["correlation_id"] == answer.headers["x-correlation-id"]
        and "Traceback" not in answer.text
    )


def test_table_covers_every_way_to_change_something() -> None:
    """The attack is only worth something while it meets endpoints that change things."""
    assert sum(method != "GET" for method, _ in ENDPOINTS) >= 10
    assert all(list(attempts(method, path, "token")) for method, path in ENDPOINTS)
