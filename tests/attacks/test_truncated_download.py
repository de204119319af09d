"""A file that ends too early is never run, and the device says why it does not follow."""

from __future__ import annotations

import pytest

from tests.attacks.battlefield import Battlefield

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kept_bytes", [0, 40])
def test_artifact_cut_short(attacked: Battlefield, kept_bytes: int) -> None:
    release = attacked.release()
    path = attacked.stored()
    assert path.stat().st_size > kept_bytes
    path.write_bytes(path.read_bytes()[:kept_bytes])
    attacked.expect_failure(release, "download_failed")


def test_artifact_that_is_not_there(attacked: Battlefield) -> None:
    release = attacked.release()
    attacked.stored().unlink()
    attacked.expect_failure(release, "download_failed")
