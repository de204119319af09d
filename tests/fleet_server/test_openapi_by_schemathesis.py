"""Guards the API against its own description: what it says is asked of it, thousands of times.

Requests are generated from the OpenAPI document, right and wrong ones; a status or a media type
that is not documented, a 5xx, or an answer of the wrong form fails, and so does anything that a
viewer or a stranger gets beyond what the table of permissions says.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, Phase, settings
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from fleet_server.access.permissions import ENDPOINTS, Door, Permission
from fleet_server.app import create_app
from fleet_server.settings import Settings

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
TIMEOUT_S = 60.0
schemathesis.serializer.alias("application/partial-upload", "application/octet-stream")

DOCUMENT = create_app(Settings(data_dir=Path("nowhere"))).openapi()
for operations in DOCUMENT["paths"].values():
    for operation in operations.values():
        # Else schemathesis invents credentials in the place of those that are tried here.
        operation.pop("security", None)


def described(*, borders: bool) -> Any:
    """The API; ``borders`` asks for every limit of every field besides what is drawn."""
    found = schemathesis.openapi.from_dict(DOCUMENT)
    found.config.phases.coverage.enabled = borders
    found.config.phases.coverage.unexpected_methods = set()
    return found


thorough, quick = described(borders=True), described(borders=False)

pytestmark = pytest.mark.slow


@dataclass
class Tried:
    """A server, and who calls it."""

    url: str
    admin: str
    viewer: str
    calls: int = 0

    def audited(self) -> int:
        """The number of records in the audit."""
        headers = {"Authorization": f"Bearer {self.admin}"}
        found = httpx.get(f"{self.url}/v1/audit?count=1", headers=headers, timeout=TIMEOUT_S)
        entries = found.json()["entries"]
        return int(entries[0]["sequence"]) if entries else 0


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tried]:
    folder = tmp_path_factory.mktemp("tried") / "data"
    listener = socket.create_server(("127.0.0.1", 0), backlog=100)
    port = listener.getsockname()[1]
    app = create_app(Settings(data_dir=folder, port=port, broker="embedded"))
    http = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None, access_log=False))
    started = threading.Event()

    async def serve() -> None:
        with listener:
            async with app.router.lifespan_context(app):
                started.set()
                await http.serve(sockets=[listener])

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="server", daemon=True)
    thread.start()
    assert started.wait(TIMEOUT_S), "the server did not start"
    url = f"http://127.0.0.1:{port}"
    admin = (folder / "admin-token").read_text().strip()
    made = httpx.post(
        f"{url}/v1/tokens",
        json={"user": "viewer", "roles": ["viewer"]},
        headers={"Authorization": f"Bearer {admin}"},
        timeout=TIMEOUT_S,
    )
    # Guesses are what is tried here, and nothing shall be learnt from being refused for that.
    app.state.admission._attempts._failures = 10**9
    yield Tried(url, admin, made.json()["token"])
    http.should_exit = True
    thread.join(TIMEOUT_S)
    assert not thread.is_alive(), "the server did not stop"


def rule_of(case: Case) -> Any:
    return ENDPOINTS[case.method.upper(), case.path]


def send(case: Case, tried: Tried, token: str | None) -> Any:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    answer = case.call(base_url=tried.url, headers=headers, timeout=TIMEOUT_S)
    case.validate_response(answer, checks=CHECKS)
    tried.calls += 1
    return answer


def tries(examples: int) -> Any:
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


def is_unreadable(answer: Any) -> bool:
    """Whether the body was no JSON at all, which is seen before anybody asks who sent it."""
    if not answer.content:
        return False  # HEAD
    problem = answer.json()
    return answer.status_code == 400 or (
        answer.status_code == 422 and "JSON decode error" in problem["detail"]
    )


@thorough.parametrize()
@tries(3)
def test_admin_who_breaks_a_promise(case: Case, tried: Tried) -> None:
    before = tried.audited()
    answer = send(case, tried, tried.admin)
    changes = case.method not in {"GET", "HEAD"} and case.path != "/v1/rollouts/plan"
    if changes and rule_of(case).door is Door.OPERATOR and not is_unreadable(answer):
        assert tried.audited() > before, "a change, or its refusal, without a record"


@quick.parametrize()
@tries(3)
def test_viewer_who_gets_further(case: Case, tried: Tried) -> None:
    rule = rule_of(case)
    answer = send(case, tried, tried.viewer)
    if rule.door is Door.OPERATOR and rule.permission is not Permission.READ:
        assert answer.status_code == 403 or is_unreadable(answer)


@quick.parametrize()
@tries(3)
def test_stranger_who_gets_in(case: Case, tried: Tried) -> None:
    answer = send(case, tried, None)
    if rule_of(case).door in {Door.OPERATOR, Door.DEVICE_OR_OPERATOR}:
        assert answer.status_code == 401 or is_unreadable(answer)
