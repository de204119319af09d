"""Guards devices from patches: a wrong one is refused, and no patch makes more than it says."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fleet_contract import limits
from fleet_contract.deltas.decoder import Decoder
from fleet_contract.deltas.form import (
    GROUP_BYTES,
    GROUP_OPERATIONS,
    HEADER_BYTES,
    SPARSE,
    WIDTHS,
    WINDOW_LOG,
    Header,
    Kind,
    Operation,
    from_gaps,
    to_gaps,
    write_number,
)
from fleet_contract.deltas.zstandard import zstd
from fleet_contract.errors import Reason, Refused

Write = Callable[..., bytes]
Apply = Callable[..., bytes]

shared = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def noise(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def hostile(old: bytes, new_bytes: int, content: bytes) -> bytes:
    """A patch whose compressed part is whatever the test says."""
    header = Header("0" * 64, "0" * 64, len(old), new_bytes)
    options = {zstd.CompressionParameter.window_log: WINDOW_LOG}
    return header.write() + zstd.compress(content, options=options)


def a_patch(write: Write) -> tuple[bytes, bytes, bytes]:
    """A patch with every kind and width in it, its old file and its new one."""
    old, new, operations = noise(900, 1), noise(600, 2), []
    for kind in (Kind.SUBTRACT, Kind.XOR, Kind.LITERAL):
        operations += [Operation(kind, width, 40, 8 * width) for width in WIDTHS]
    made = bytearray(new)
    made[480:600] = old[700:820]
    operations.append(Operation(Kind.COPY, 1, 120, 700))
    return old, bytes(made), write(old, bytes(made), operations)


@st.composite
def edits(draw: st.DrawFn) -> tuple[bytes, bytes, list[Operation]]:
    """Any old file, any new file, and operations that cover the new one."""
    old = draw(st.binary(max_size=300))
    new, operations = b"", []
    for _ in range(draw(st.integers(0, 8))):
        width = draw(st.sampled_from(WIDTHS))
        kind = draw(st.sampled_from(Kind))
        size = width * draw(st.integers(1, 12))
        if kind is not Kind.LITERAL and size > len(old):
            kind = Kind.LITERAL
        base = 0 if kind is Kind.LITERAL else draw(st.integers(0, len(old) - size))
        copied = old[base : base + size]
        new += copied if kind is Kind.COPY else draw(st.binary(min_size=size, max_size=size))
        operations.append(Operation(kind, width, size, base))
    return old, new, operations


@shared
@given(edits(), st.integers(1, 200))
def test_whatever_the_operations_the_file_is_the_same(
    write: Write, apply: Apply, edit: tuple[bytes, bytes, list[Operation]], at_once: int
) -> None:
    old, new, operations = edit
    assert apply(old, write(old, new, operations), at_once) == new


@given(st.integers(0, 3000), st.dictionaries(st.integers(0, 2999), st.integers(1, 255)))
def test_gaps_are_the_plane_again(size: int, kept: dict[int, int]) -> None:
    plane = bytearray(size)
    for place, value in kept.items():
        if place < size:
            plane[place] = value
    gaps = to_gaps(bytes(plane))
    if gaps is None:
        assert SPARSE * (len(plane) - plane.count(0) + size // 256 + 1) > size
    else:
        assert len(gaps[0]) == len(gaps[1]) <= size // SPARSE
        assert from_gaps(*gaps, size) == plane


def test_few_changes_cost_little(write: Write, apply: Apply) -> None:
    """One byte in twenty is 1 or -1: a byte and a little for each of them."""
    rng = np.random.default_rng(4)
    old = rng.integers(0, 256, GROUP_BYTES, dtype=np.uint8)
    places = rng.random(GROUP_BYTES) < 0.05
    new = old + np.where(places, rng.choice([1, 255], GROUP_BYTES), 0).astype(np.uint8)
    for kind in (Kind.SUBTRACT, Kind.XOR):
        patch = write(old.tobytes(), new.tobytes(), [Operation(kind, 1, GROUP_BYTES, 0)])
        assert apply(old.tobytes(), patch) == new.tobytes()
    patch = write(old.tobytes(), new.tobytes(), [Operation(Kind.SUBTRACT, 1, GROUP_BYTES, 0)])
    assert len(patch) < 1.2 * places.sum() + 200


def test_groups_are_cut_and_long_copies_are_not_held(write: Write, apply: Apply) -> None:
    old = noise(5 * GROUP_BYTES)
    new = old[8 : 4 * GROUP_BYTES + 8] + noise(3 * GROUP_BYTES, 3)
    operations = [Operation(Kind.COPY, 1, 4 * GROUP_BYTES, 8)]
    operations += [Operation(Kind.SUBTRACT, 4, GROUP_BYTES // 2, 4)] * 6
    patch = write(old, new, operations)
    assert apply(old, patch) == new
    sizes = [
        len(piece) for piece in Decoder(reader(patch)).pieces(lambda at, size: old[at : at + size])
    ]
    assert max(sizes) <= GROUP_BYTES


def reader(patch: bytes) -> Callable[[int], bytes]:
    left = memoryview(patch)

    def read(size: int) -> bytes:
        nonlocal left
        piece, left = bytes(left[:size]), left[size:]
        return piece

    return read


def test_truncated_anywhere_is_refused(write: Write, apply: Apply) -> None:
    old, new, patch = a_patch(write)
    assert apply(old, patch) == new
    for end in range(len(patch)):
        with pytest.raises(Refused):
            apply(old, patch[:end])


def test_any_flipped_bit_is_refused_or_makes_as_many_bytes(write: Write, apply: Apply) -> None:
    old, new, patch = a_patch(write)
    for place in range(len(patch)):
        for bit in range(8):
            damaged = bytearray(patch)
            damaged[place] ^= 1 << bit
            try:
                made = apply(old, bytes(damaged))
            except Refused:
                continue
            assert len(made) == len(new)


@shared
@given(st.binary(max_size=400), st.integers(0, 2000))
def test_any_content_is_refused_or_makes_as_many_bytes(
    apply: Apply, content: bytes, new_bytes: int
) -> None:
    old = bytes(500)
    try:
        made = apply(old, hostile(old, new_bytes, content))
    except Refused:
        return
    assert len(made) == new_bytes


@pytest.mark.parametrize(
    ("what", "content"),
    [
        ("no operation in a group", write_number(0)),
        ("too many operations in a group", write_number(GROUP_OPERATIONS + 1)),
        ("unknown kind", b"\x01\x40\x04"),
        ("unknown width", b"\x01\x14\x04"),
        ("an operation of nothing", b"\x01\x10\x00"),
        ("half an integer", b"\x01\x12\x05"),
        ("longer than the file", b"\x01\x10" + write_number(101)),
        ("before the old file", b"\x01\x00\x04\x01"),
        ("behind the old file", b"\x01\x00\x04" + write_number(2 * 97)),
        ("a number without an end", b"\xff" * 12),
        ("more gaps than a plane may have", b"\x01\x10\x64" + write_number(27) + b"\x00\x01" * 26),
        ("a gap that leads out of the plane", b"\x01\x10\x64\x02\x64\x01"),
        ("gaps that lead out of the plane", b"\x01\x10\x64\x03\x32\x32\x01\x01"),
        ("gaps without bytes", b"\x01\x10\x64\x03\x00\x00\x01"),
        ("more than is announced", b"\x01\x00" + write_number(100) + b"\x00" + b"more"),
    ],
)
def test_refuses(apply: Apply, what: str, content: bytes) -> None:
    with pytest.raises(Refused) as refused:
        apply(bytes(100), hostile(bytes(100), 100, content))
    assert refused.value.reason is Reason.MALFORMED, what


def test_endless_tiny_operations_are_refused(apply: Apply) -> None:
    """A few bytes of patch must not keep a device busy for hours, byte by byte."""
    group = write_number(GROUP_OPERATIONS) + b"\x00\x01\x00" * GROUP_OPERATIONS
    old = bytes(256 * GROUP_OPERATIONS)
    with pytest.raises(Refused, match="a group of 4096 operations"):
        apply(old, hostile(old, len(old), group * 256))


def test_a_bomb_is_refused_before_it_unpacks(write: Write) -> None:
    old = bytes(16)
    for new_bytes in (16, limits.ARTIFACT_BYTES):
        patch = hostile(old, new_bytes, b"\x01\x10" + write_number(1 << 30) + bytes(1 << 26))
        tracemalloc.start()
        with pytest.raises(Refused):
            list(Decoder(reader(patch)).pieces(lambda at, size: old[at : at + size]))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1 << 20


def test_a_wider_window_is_refused(apply: Apply) -> None:
    options = {zstd.CompressionParameter.window_log: WINDOW_LOG + 3}
    frame = zstd.ZstdCompressor(options=options)
    content = b"\x01\x10" + write_number(1000) + noise(1000)
    patch = Header("0" * 64, "0" * 64, 0, 1000).write() + frame.compress(content) + frame.flush()
    with pytest.raises(Refused, match="damaged"):
        apply(b"", patch)


def test_something_behind_the_patch_is_refused(write: Write, apply: Apply) -> None:
    old, _, patch = a_patch(write)
    with pytest.raises(Refused, match="follows"):
        apply(old, patch + b"x")
    with pytest.raises(Refused, match="follows"):
        apply(old, patch + b"x", len(patch))


def test_other_files_and_versions_are_refused(apply: Apply) -> None:
    for head in (b"", b"EFDELTA2" + bytes(HEADER_BYTES), b"\x00" * HEADER_BYTES):
        with pytest.raises(Refused) as refused:
            apply(b"", head)
        assert refused.value.reason is Reason.MALFORMED
    with pytest.raises(Refused) as refused:
        apply(b"", Header("0" * 64, "0" * 64, 0, limits.ARTIFACT_BYTES + 1).write())
    assert refused.value.reason is Reason.TOO_LARGE


def test_an_old_file_cut_short_is_refused(write: Write, apply: Apply) -> None:
    old, _, patch = a_patch(write)
    with pytest.raises(Refused) as refused:
        apply(old[:750], patch)
    assert refused.value.reason is Reason.WRONG_SIZE


def test_too_many_operations_are_not_written(write: Write) -> None:
    with pytest.raises(Refused) as refused:
        write(
            b"ab", b"ab" * 5000, [Operation(Kind.COPY, 1, 1, place % 2) for place in range(10_000)]
        )
    assert refused.value.reason is Reason.TOO_LARGE
