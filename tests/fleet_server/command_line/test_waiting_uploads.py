"""Guards from uploads that are in the way of the next push, and from dropping the wrong one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def begun(server: Any) -> list[str]:
    """The ids of two uploads: one that is whole, and one of which half has arrived."""
    ids = []
    for data, sent in ((b"whole", b"whole"), (b"unfinished", b"unfin")):
        plan = {"field": "golden", "size_bytes": len(data)}
        plan["sha256"] = hashlib.sha256(data).hexdigest()
        made = server.client.post("/v1/uploads", json=plan)
        ids.append(made.json()["id"])
        headers = {"Upload-Offset": "0", "Content-Type": "application/partial-upload"}
        answer = server.client.patch(f"/v1/uploads/{ids[-1]}", content=sent, headers=headers)
        assert answer.is_success, answer.text
    return ids


@pytest.fixture
def uploads(server: Any, edgefleet: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *words: edgefleet("--url", server.settings.url, "model", "uploads", *words)


def test_what_waits_is_shown_and_dropped_by_its_id(begun: list[str], uploads: Any) -> None:
    shown = uploads().out
    assert all(name in shown for name in begun)
    assert "whole" in shown and "unfinished" in shown
    said = json.loads(uploads("--drop", begun[0], "--json").out)
    assert [item["id"] for item in said["dropped"]] == begun[:1]
    left = json.loads(uploads("--json").out)["uploads"]
    assert [(item["id"], item["offset_bytes"]) for item in left] == [(begun[1], 5)]


def test_wrong_id_drops_nothing(begun: list[str], uploads: Any) -> None:
    said = uploads("--drop", begun[0], "--drop", "0" * 32)
    assert said.code == 1 and "nothing was dropped" in said.err
    assert all(name in uploads().out for name in begun)


def test_all_are_dropped(begun: list[str], uploads: Any) -> None:
    said = uploads("--drop", "all")
    assert "Dropped 2 of 2." in said.out
    assert "You have no uploads" in said.out
    assert uploads("--drop", "all").code == 0
