"""Guards from changes without an entry, and entries without their change."""

from __future__ import annotations

from typing import Any

import pytest

from fleet_server.audit import service
from fleet_server.database import Database


def record(session: Any, name: str) -> None:
    service.record(
        session,
        action="cohort.create",
        resource_type="cohort",
        resource_name=name,
        outcome="done",
        user="admin",
        correlation_id="c-1",
        detail={"priority": 10},
        now_ms=5,
    )


def test_entry_of_a_change_that_was_rolled_back(database: Database) -> None:
    with pytest.raises(RuntimeError), database.transaction() as session:
        record(session, "lab")
        raise RuntimeError("refused")
    with database.reading() as session:
        assert service.newest(session) == []


def test_page_that_misses_or_repeats_an_entry(database: Database) -> None:
    with database.transaction() as session:
        for number in range(7):
            record(session, f"cohort-{number}")
    seen: list[str] = []
    before: int | None = None
    with database.reading() as session:
        while page := service.newest(session, before=before, count=3):
            seen += [entry.resource_name for entry in page]
            before = page[-1].sequence
    assert seen == [f"cohort-{number}" for number in reversed(range(7))]


def test_name_that_is_longer_than_its_column(database: Database) -> None:
    with database.transaction() as session:
        record(session, "x" * 5_000)
    with database.reading() as session:
        assert len(service.newest(session)[0].resource_name) == 300
