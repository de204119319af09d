"""Guards from tokens that outlive their end, allow more than their maker may, or lock all out."""

from __future__ import annotations

from typing import Any

import pytest

from fleet_contract.errors import ContractError
from fleet_server.access import service
from fleet_server.access.permissions import ROLES, Permission
from fleet_server.access.roles import permissions_of
from fleet_server.access.service import Wanted
from fleet_server.access.users import User, covers, within
from fleet_server.database import Database
from fleet_server.errors import Conflict, DomainError, Forbidden, Invalid, NotFound, Unauthorized

MINUTE_MS = 60_000
ROOT = User("root", ("admin",), frozenset(Permission))


def make(
    database: Database, clock: Any, *roles: str, by: User = ROOT, now_ms: int = 0, **limits: Any
) -> service.Made:
    wanted = Wanted(
        limits.get("user", "ann"),
        roles or ("viewer",),
        limits.get("fleets", ()),
        limits.get("models", ()),
        limits.get("valid_ms", MINUTE_MS),
    )
    with database.transaction() as session:
        return service.create_token(
            session, ROLES, wanted, by=by, random_bytes=clock.random_bytes, now_ms=now_ms
        )


def authenticate(database: Database, token: str, *, now_ms: int = 1, fleet: str = "home") -> User:
    with database.reading() as session:
        return service.authenticate(session, ROLES, token, fleet=fleet, now_ms=now_ms)


def revoke(database: Database, token: str) -> None:
    with database.transaction() as session:
        service.revoke_token(session, ROLES, token, now_ms=5)


def test_token_after_its_end(database: Database, clock: Any) -> None:
    made = make(database, clock)
    assert authenticate(database, made.token, now_ms=MINUTE_MS - 1).name == "ann"
    with pytest.raises(Unauthorized) as refused:
        authenticate(database, made.token, now_ms=MINUTE_MS)
    assert refused.value.code == "token_expired"


def test_token_after_it_was_revoked(database: Database, clock: Any) -> None:
    made = make(database, clock)
    for _ in range(2):
        revoke(database, made.row.id)
    with pytest.raises(Unauthorized) as refused:
        authenticate(database, made.token)
    assert refused.value.code == "token_revoked"
    assert made.token not in refused.value.detail + refused.value.advice
    with pytest.raises(NotFound):
        revoke(database, "0" * 12)


def test_token_of_another_fleet(database: Database, clock: Any) -> None:
    made = make(database, clock, fleets=["work"])
    with pytest.raises(Forbidden):
        authenticate(database, made.token)
    assert authenticate(database, made.token, fleet="work").fleets == ("work",)


def test_token_that_is_kept(database: Database, clock: Any) -> None:
    made = make(database, clock)
    with database.reading() as session:
        kept = repr([row.model_dump() for row in service.tokens(session)])
    assert made.token not in kept and made.token.removeprefix("ef_") not in kept


@pytest.mark.parametrize(
    ("by", "roles", "limits"),
    [
        (["operator"], ["admin"], {}),
        (["operator"], ["viewer", "approver"], {}),
        (["admin"], ["viewer"], {"models": []}),
        (["admin"], ["viewer"], {"models": ["vision-a", "audio"]}),
        (["admin"], ["viewer"], {"models": ["vis*"]}),
        (["admin"], ["viewer"], {"models": ["vision-a"], "fleets": []}),
        (["admin"], ["viewer"], {"models": ["vision-a"], "fleets": ["work"]}),
    ],
)
def test_token_that_allows_more_than_its_maker(
    database: Database, clock: Any, by: list[str], roles: list[str], limits: dict[str, Any]
) -> None:
    limited = by == ["admin"]
    maker = User(
        "maker",
        tuple(by),
        permissions_of(ROLES, by),
        ("home",) if limited else (),
        ("vision-*",) if limited else (),
    )
    given = {"fleets": ["home"]} | limits if limited else limits
    with pytest.raises(Forbidden):
        make(database, clock, *roles, by=maker, **given)
    own: dict[str, Any] = {"fleets": ["home"], "models": ["vision-cats*"]} if limited else {}
    make(database, clock, "viewer", by=maker, **own)


@pytest.mark.parametrize(
    "wrong",
    [
        {"user": ""},
        {"user": "system"},
        {"user": "device:dev-1"},
        {"user": "oidc:ann"},
        {"user": "ann\n"},
        {"user": "x" * 64},
        {"fleets": ["../home"]},
        {"models": ["*"]},
        {"models": ["a*b"]},
        {"models": ["latest/../x"]},
        {"models": [f"model-{number}" for number in range(101)]},
        {"valid_ms": 59_999},
        {"valid_ms": 367 * 24 * 3_600_000},
    ],
)
def test_token_for_somebody_who_cannot_be(
    database: Database, clock: Any, wrong: dict[str, Any]
) -> None:
    with pytest.raises((Invalid, ContractError)):
        make(database, clock, **wrong)


def test_role_that_does_not_exist(database: Database, clock: Any) -> None:
    with pytest.raises(DomainError) as refused:
        make(database, clock, "root")
    assert "viewer" in refused.value.advice


def test_last_token_that_makes_tokens(database: Database, clock: Any) -> None:
    first = make(database, clock, "admin", valid_ms=10 * MINUTE_MS)
    make(database, clock, "admin", models=["vision-*"], valid_ms=10 * MINUTE_MS)
    with pytest.raises(Conflict):
        revoke(database, first.row.id)
    second = make(database, clock, "admin", valid_ms=10 * MINUTE_MS)
    revoke(database, first.row.id)
    with pytest.raises(Conflict):
        revoke(database, second.row.id)


def test_family_that_covers_a_neighbour() -> None:
    assert covers("vision-*", "vision-cats") and covers("vision-*", "vision-c*")
    assert covers("vision", "vision")
    assert not covers("vision", "vision-cats")
    assert not covers("vision-*", "vision") and not covers("vision-*", "vis*")
    assert within([], ["a"]) and within([], [])
    assert not within(["a"], []), "a limit must not be taken for none"
