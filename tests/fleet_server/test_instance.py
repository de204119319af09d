"""A server that comes back must be known as the one that went, or its leases hold everybody up."""

from __future__ import annotations

from pathlib import Path

import pytest

from fleet_server.instance import ID_FILE, instance_of


def draw_a(count: int) -> bytes:
    return b"\xaa" * count


def draw_b(count: int) -> bytes:
    return b"\xbb" * count


def test_restarted_server_is_a_stranger(tmp_path: Path) -> None:
    assert instance_of(tmp_path, random_bytes=draw_a) == "aa" * 8
    assert instance_of(tmp_path, random_bytes=draw_b) == "aa" * 8


@pytest.mark.parametrize("damaged", [b"", b"aaaa", b"\xff\xfe", b"../../etc/passwd"])
def test_damaged_id_is_believed(tmp_path: Path, damaged: bytes) -> None:
    (tmp_path / ID_FILE).write_bytes(damaged)
    assert instance_of(tmp_path, random_bytes=draw_b) == "bb" * 8
    assert instance_of(tmp_path, random_bytes=draw_a) == "bb" * 8
