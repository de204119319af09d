"""Goes through arrays that may be as large as a disk, some rows at a time.

Pure: where the numbers lie is decided in :mod:`fleet_server.releases.shelf`.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

PIECE_BYTES = 1024 * 1024
"""What is held in memory of an array at a time."""

Array = NDArray[np.generic]


def pieces(array: Array) -> Iterator[Array]:
    """Yield the rows of an array in pieces of about a megabyte, and of one row at least."""
    height = max(1, PIECE_BYTES // max(1, array[:1].nbytes))
    for start in range(0, len(array), height):
        yield array[start : start + height]


def pairs(one: Array, two: Array) -> Iterator[tuple[Array, Array]]:
    """Yield the same rows of two arrays in turn, as many as :func:`pieces` has of the first."""
    start = 0
    for piece in pieces(one):
        yield piece, two[start : start + len(piece)]
        start += len(piece)
