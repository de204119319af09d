"""A directive that was held back until its time was over must not start anything."""

from __future__ import annotations

import pytest

from tests.attacks.battlefield import Battlefield

pytestmark = pytest.mark.slow


def test_directive_held_back_until_it_expired(attacked: Battlefield) -> None:
    now_ms = attacked.directive().issued_ms
    expired = attacked.signed(issued_ms=now_ms - 10_000, expires_ms=now_ms - 1)
    attacked.expect_refusal("expired", expired)
