"""Whoever can change what the store serves must not be able to change what devices run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.attacks.battlefield import Battlefield

pytestmark = pytest.mark.slow


def flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def test_artifact_exchanged_in_the_store(attacked: Battlefield) -> None:
    release = attacked.release()
    flip_last_byte(attacked.stored())
    attacked.expect_failure(release, "wrong_hash")


def test_artifact_made_longer_in_the_store(attacked: Battlefield) -> None:
    release = attacked.release()
    with attacked.stored().open("ab") as file:
        file.write(b"more")
    attacked.expect_failure(release, "wrong_size")


def test_manifest_exchanged_in_the_store(attacked: Battlefield) -> None:
    release = attacked.release()
    flip_last_byte(attacked.stored(release.manifest))
    attacked.expect_failure(release, "wrong_hash")
