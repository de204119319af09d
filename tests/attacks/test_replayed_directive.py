"""What was true once must not come back: a device never goes behind what it has accepted."""

from __future__ import annotations

import pytest

from tests.attacks.battlefield import Battlefield
from tests.attacks.documents import Attack, of

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("attack", of(5, 6), ids=str)
def test_document_that_is_not_the_newest(attacked: Battlefield, attack: Attack) -> None:
    attacked.withstand(attack)
