"""Which range of the old file each range of the new one is made from.

Decides by tensors' keys and by what lies between them; how a range is written is the encoder's.
Whatever is decided here, the patch is right: a bad match only makes it larger.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from fleet_server.deltas import onnx_tensors, tflite_tensors
from fleet_server.deltas.tensors import NotUnderstood, Tensor, in_order

_ANCHOR_BYTES = 16
"""Text that both files have is looked for by pieces of this length."""
_STEP_BYTES = 4
_SEARCHED_BYTES = 1024 * 1024
"""The longest range between two tensors in which common text is looked for."""


@dataclass(frozen=True, slots=True)
class Range:
    """A range of the new file, and where in the old one its like begins (None: nowhere)."""

    start: int
    size_bytes: int
    width_bytes: int
    base: int | None


def find_tensors(data: memoryview) -> list[Tensor]:
    """Return the tensors of a file in either format, none if it is in neither."""
    for reader in (tflite_tensors, onnx_tensors):
        try:
            return in_order(reader.find_tensors(data), len(data))
        except NotUnderstood:
            continue
    return []


def align(old: memoryview, new: memoryview) -> Iterator[Range]:
    """Yield ranges that cover the new file from beginning to end."""
    old_tensors, new_tensors = find_tensors(old), find_tensors(new)
    partners = _partners(old_tensors, new_tensors)
    position = old_position = 0
    for tensor in new_tensors:
        partner = partners.get(tensor)
        gap_end = partner.start if partner is not None else old_position
        yield from _between(old, new, old_position, gap_end, position, tensor.start)
        yield Range(
            tensor.start,
            tensor.size_bytes,
            tensor.width_bytes,
            None if partner is None else partner.start,
        )
        position = tensor.start + tensor.size_bytes
        if partner is not None:
            old_position = partner.start + partner.size_bytes
    yield from _between(old, new, old_position, len(old), position, len(new))


def _partners(old: list[Tensor], new: list[Tensor]) -> dict[Tensor, Tensor]:
    """Match tensors of one size and width: by key, the rest by their order."""
    by_key = {(tensor.key, tensor.size_bytes, tensor.width_bytes): tensor for tensor in old}
    partners: dict[Tensor, Tensor] = {}
    taken: set[Tensor] = set()
    for tensor in new:
        partner = by_key.get((tensor.key, tensor.size_bytes, tensor.width_bytes))
        if partner is not None and partner not in taken:
            partners[tensor] = partner
            taken.add(partner)
    spare: dict[tuple[int, int], list[Tensor]] = {}
    for tensor in reversed(old):
        if tensor not in taken:
            spare.setdefault((tensor.size_bytes, tensor.width_bytes), []).append(tensor)
    for tensor in new:
        like = spare.get((tensor.size_bytes, tensor.width_bytes))
        if tensor not in partners and like:
            partners[tensor] = like.pop()
    return partners


def _between(
    old: memoryview, new: memoryview, old_start: int, old_end: int, start: int, end: int
) -> Iterator[Range]:
    """Yield ranges of structure: what lies between tensors, in bytes."""
    size, old_size = end - start, old_end - old_start
    if size <= 0:
        return
    if size == old_size:
        yield Range(start, size, 1, old_start)
    elif old_size <= 0 or max(size, old_size) > _SEARCHED_BYTES:
        shared = max(0, min(size, old_size))
        if shared:
            yield Range(start, shared, 1, old_start)
        if size > shared:
            yield Range(start + shared, size - shared, 1, None)
    else:
        yield from _common_text(old, new, old_start, old_end, start, end)


def _common_text(
    old: memoryview, new: memoryview, old_start: int, old_end: int, start: int, end: int
) -> Iterator[Range]:
    was, text = bytes(old[old_start:old_end]), bytes(new[start:end])
    known = {
        was[place : place + _ANCHOR_BYTES]: place
        for place in range(len(was) - _ANCHOR_BYTES, -1, -_STEP_BYTES)
    }
    at = written = expected = 0
    while at <= len(text) - _ANCHOR_BYTES:
        anchor = text[at : at + _ANCHOR_BYTES]
        # Where the last common text went on, if it does so again; else wherever there is the like.
        found = expected if was.startswith(anchor, expected) else known.get(anchor, -1)
        if found < 0:
            at, expected = at + 1, expected + 1
            continue
        while at > written and found > 0 and text[at - 1] == was[found - 1]:
            at, found = at - 1, found - 1
        if at > written:
            yield Range(start + written, at - written, 1, None)
        size = _run(text, at, was, found)
        yield Range(start + at, size, 1, old_start + found)
        at, expected = at + size, found + size
        written = at
    if written < len(text):
        yield Range(start + written, len(text) - written, 1, None)


def _run(one: bytes, at: int, other: bytes, place: int) -> int:
    """Return how many bytes two texts have in common from there on."""
    most = min(len(one) - at, len(other) - place)
    low, step = 0, _ANCHOR_BYTES
    while step > 0:
        reach = min(low + step, most)
        if one[at + low : at + reach] == other[place + low : place + reach]:
            if reach == most:
                return most
            low, step = reach, step * 2
        else:
            step = min(step, reach - low) // 2
    return low
