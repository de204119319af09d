"""Guards from a roles file that is misread, or that changes what a known role may do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fleet_server.access.permissions import ROLES, Permission
from fleet_server.access.roles import permissions_of, read_roles
from fleet_server.errors import StartError


def test_roles_that_an_installation_adds(tmp_path: Path) -> None:
    path = tmp_path / "roles.json"
    path.write_text(
        json.dumps(
            {
                "data-science-lead": ["read", "push", "approve"],
                "platform-lead": ["read", "approve", "rollback", "force-gate", "disable-model"],
            }
        )
    )
    roles = read_roles(str(path))
    assert set(roles) == {*ROLES, "data-science-lead", "platform-lead"}
    assert Permission.FORCE_GATE not in permissions_of(roles, ["data-science-lead", "viewer"])
    assert Permission.FORCE_GATE in permissions_of(roles, ["platform-lead"])
    assert permissions_of(roles, ["role-that-was-removed"]) == frozenset()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{",
        "[" * 100_000,
        '{"admin": ["read"]}',
        '{"viewer": ["read", "push"]}',
        '{"lead": []}',
        '{"lead": "read"}',
        '{"lead": ["raed"]}',
        '{"lead": [["read"]]}',
        '{"../lead": ["read"]}',
        json.dumps({f"role-{number}": ["read"] for number in range(51)}),
        " " * 70_000 + "{}",
    ],
)
def test_roles_file_that_cannot_be_meant(tmp_path: Path, content: str) -> None:
    path = tmp_path / "roles.json"
    path.write_text(content)
    with pytest.raises(StartError):
        read_roles(str(path))


def test_roles_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StartError):
        read_roles(str(tmp_path / "roles.json"))
