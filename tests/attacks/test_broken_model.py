"""A signed release may still be broken: it is tried in a child, and never answers."""

from __future__ import annotations

import pytest

from device_agent.inference.capabilities import tiny_model
from tests.attacks.battlefield import Battlefield

pytestmark = pytest.mark.slow


def test_file_that_is_no_model(attacked: Battlefield) -> None:
    attacked.expect_failure(attacked.release(model=b"this is no model"), "broken_model")


def test_model_cut_short_before_it_was_signed(attacked: Battlefield) -> None:
    model = tiny_model(opset=13, ir_version=8)
    attacked.expect_failure(attacked.release(model=model[: len(model) // 2]), "broken_model")


def test_model_that_answers_otherwise_than_at_staging(attacked: Battlefield) -> None:
    attacked.expect_failure(attacked.release(golden_output=[3.0, 4.0]), "golden_mismatch")
