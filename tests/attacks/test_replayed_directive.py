"""What was true once must not come back: a device never goes behind what it has accepted."""

from __future__ import annotations

import pytest

from tests.attacks.battlefield import Battlefield

pytestmark = pytest.mark.slow


def test_older_directive_replayed(attacked: Battlefield) -> None:
    older = attacked.newest
    attacked.restore()
    assert attacked.newest != older
    attacked.expect_refusal("old_epoch", older)


def test_two_directives_of_one_epoch(attacked: Battlefield) -> None:
    attacked.restore()
    other = attacked.signed(epoch=attacked.newest_epoch)
    attacked.expect_refusal("equivocation", other)


def test_directive_of_a_generation_that_was_left(attacked: Battlefield) -> None:
    older = attacked.signed(generation=attacked.keyring.generation - 1)
    attacked.expect_refusal("old_generation", older)


def test_directive_of_a_generation_that_nobody_vouches_for(attacked: Battlefield) -> None:
    newer = attacked.signed(generation=attacked.keyring.generation + 1)
    attacked.expect_refusal("unconfirmed_generation", newer)
