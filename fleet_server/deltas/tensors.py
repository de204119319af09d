"""Where a model file keeps its tensors' bytes: what the readers of formats return.

Decides nothing about models. A file that a reader does not understand has no tensors, and its patch
is larger; it is never refused for that.
"""

from dataclasses import dataclass

MOST_TENSORS = 65_536
"""Tensors that are looked for in one file; above that the rest counts as structure."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """The bytes of one tensor. ``key`` is the same in another release's file of the same model."""

    key: str
    start: int
    size_bytes: int
    width_bytes: int


class NotUnderstood(Exception):
    """The file has not the form that its format demands, or is nested too deeply."""


def in_order(found: list[Tensor], file_bytes: int) -> list[Tensor]:
    """Return tensors by position without those that overlap others, lie outside or are empty."""
    kept: list[Tensor] = []
    end = 0
    for tensor in sorted(found, key=lambda tensor: tensor.start):
        whole = tensor.size_bytes - tensor.size_bytes % tensor.width_bytes
        if tensor.start >= end and whole > 0 and tensor.start + whole <= file_bytes:
            kept.append(Tensor(tensor.key, tensor.start, whole, tensor.width_bytes))
            end = tensor.start + whole
    return kept
