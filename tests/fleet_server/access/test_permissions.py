"""Guards from an endpoint that nobody declared, and from roles that may more than is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fleet_server.access.permissions import ENDPOINTS, MEANING, ROLES, Door, Permission, Reach
from fleet_server.api_document import PERMISSION
from fleet_server.app import create_app
from fleet_server.settings import Settings

REFERENCE = Path(__file__).parents[3] / "docs" / "reference" / "access.md"
WAITS = {Permission.FORCE_GATE, Permission.DISABLE_MODEL}
"""Permissions whose endpoints are still to come; they are in the roles from the start."""


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return create_app(Settings(data_dir=tmp_path_factory.mktemp("none"))).openapi()


def operations(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (method.upper(), path): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


def test_endpoint_that_nobody_declared(document: dict[str, Any]) -> None:
    found = set(operations(document))
    assert found - set(ENDPOINTS) == set(), "add it to fleet_server/access/permissions.py"
    assert set(ENDPOINTS) - found == set(), "there is no such endpoint"


def test_declared_endpoint_whose_door_is_open(document: dict[str, Any]) -> None:
    for key, operation in operations(document).items():
        rule = ENDPOINTS[key]
        schemes = {name for item in operation.get("security", []) for name in item}
        wanted = {
            Door.OPERATOR: {"operator"},
            Door.DEVICE_OR_OPERATOR: {"operator", "device"},
            Door.DEVICE: {"device"},
            Door.ENROLMENT: set(),
            Door.ANYONE: set(),
        }[rule.door]
        assert schemes == wanted, key
        assert (rule.permission is not None) == ("operator" in schemes), key
        assert operation.get(PERMISSION) == (rule.permission and rule.permission.value), key


def test_change_that_reading_allows() -> None:
    harmless = {("POST", "/v1/rollouts/plan")}
    for (method, path), rule in ENDPOINTS.items():
        if method not in {"GET", "HEAD"} and (method, path) not in harmless:
            assert rule.permission is not Permission.READ, (method, path)


def test_path_with_a_model_that_every_token_reaches() -> None:
    for (_method, path), rule in ENDPOINTS.items():
        if "{model}" in path or "{rollout}" in path:
            assert rule.reach is Reach.MODEL, path


def test_permission_that_opens_nothing() -> None:
    used = {rule.permission for rule in ENDPOINTS.values()}
    assert set(Permission) - used == WAITS
    assert set(MEANING) == set(Permission)


def test_role_that_may_more_than_its_name_says() -> None:
    assert ROLES["viewer"] == {Permission.READ}
    assert ROLES["admin"] == set(Permission)
    assert Permission.APPROVE not in ROLES["operator"]
    assert not {Permission.PUSH, Permission.ROLLOUT} & ROLES["approver"]
    for name in ("viewer", "operator", "approver"):
        assert (
            not {Permission.TOKENS, Permission.FORCE_GATE, Permission.DISABLE_MODEL} & ROLES[name]
        )


def test_documented_roles_that_are_others() -> None:
    text = REFERENCE.read_text(encoding="utf-8")
    assert roles_table() in text, f"put this into {REFERENCE.name}:\n{roles_table()}"
    assert endpoints_table() in text, f"put this into {REFERENCE.name}:\n{endpoints_table()}"


def roles_table() -> str:
    lines = [
        f"| Permission | {' | '.join(ROLES)} | What it allows |",
        f"|---|{'---|' * len(ROLES)}---|",
    ]
    for permission in Permission:
        marks = " | ".join("yes" if permission in ROLES[role] else "" for role in ROLES)
        lines.append(f"| `{permission.value}` | {marks} | {MEANING[permission]} |")
    return "\n".join(line.replace("|  |", "| |").replace("|  |", "| |") for line in lines)


def endpoints_table() -> str:
    lines = ["| Method | Path | Permission | Who | A limited token |", "|---|---|---|---|---|"]
    reaches = {Reach.MODEL: "its models", Reach.FLEET: "no", Reach.SHARED: "yes"}
    for (method, path), rule in ENDPOINTS.items():
        needs = f"`{rule.permission.value}`" if rule.permission is not None else ""
        limited = reaches[rule.reach] if rule.permission is not None else ""
        lines.append(f"| {method} | `{path}` | {needs} | {rule.door.value} | {limited} |")
    return "\n".join(line.replace("|  |", "| |") for line in lines)
