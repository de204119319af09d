"""A stolen authority opens nothing; a real agent comes over to the next, and predicts meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from device_agent.shell.workshop import Workshop
from tests.attacks.battlefield import Battlefield

pytestmark = pytest.mark.slow

PATH = "/v1/trust/authorities"


@pytest.fixture
def field(tmp_path: Path, workshop: Workshop) -> Iterator[Battlefield]:
    """A battlefield of its own, whose authorities are replaced."""
    begun = Battlefield(tmp_path, workshop)
    begun.open()
    yield begun
    begun.close()


def step(field: Battlefield, line: str, **how: bool) -> int:
    """Take a step; how many devices that has left behind."""
    answer = field.http.post(PATH, json={"line": line, **how})
    assert answer.status_code == 200, answer.text
    assert answer.json()["committed"]
    return int(answer.json()["behind"])


def behind(field: Battlefield) -> int:
    lines: list[dict[str, Any]] = field.http.get(PATH).json()["lines"]
    return next(int(item["behind"]) for item in lines if item["line"] == "device")


def follows(field: Battlefield) -> None:
    """What the director says reaches the device, and no prediction was missed."""
    field.stable = field.release()
    field.direct(field.stable)
    field.wait_until(
        lambda: field.active_at_server() == field.stable.digest, "the device to follow"
    )
    assert field.feeder.failures == []


@pytest.mark.parametrize("lost", [True, False])
def test_device_that_a_replaced_authority_leaves_behind(field: Battlefield, lost: bool) -> None:
    assert behind(field) == 0
    assert step(field, "device", lost=lost) == 1
    if not lost:
        assert behind(field) == 1
        follows(field)
        step(field, "device", finish=True)
    # Put out of the broker, it renews by itself and comes back.
    field.wait_until(lambda: behind(field) == 0, "the device to renew")
    follows(field)


@pytest.mark.parametrize("lost", [True, False])
def test_device_that_believes_the_replaced_server(field: Battlefield, lost: bool) -> None:
    step(field, "server", lost=lost)
    if not lost:
        follows(field)
        step(field, "server", finish=True)
    follows(field)
    # A connection outlives what it was made with; the next one is to somebody unknown.
    field.app.state.expel([field.device()["name"]])
    follows(field)
    present = (field.app.state.authority.folder / "anchors.pem").read_bytes()
    assert len(x509.load_pem_x509_certificates(present)) == 1

    def heals() -> bool:
        return any(path.read_bytes() == present for path in field.device_folder.rglob("anchors*"))

    field.wait_until(heals, "the device to fetch the anchors")
