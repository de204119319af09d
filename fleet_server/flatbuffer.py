"""Reads the tables of a flatbuffer whose schema the caller knows, every offset checked.

Decides nothing about what the tables mean. The generated readers trust each offset; here one that
leads out of the file, or more tables than any model has, is an error.
"""

import struct

MOST_TABLES = 8 * 65_536
"""Read from one file: above any model meant for a device."""


class OutOfBounds(Exception):
    """The file has not the form that its format demands."""


class Flatbuffer:
    """A flatbuffer whose offsets are checked before they are followed."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._left = MOST_TABLES

    def follow(self, at: int) -> int:
        """Return where an offset leads to."""
        target = at + self._unpack("<I", at)
        self._check(target, 4)
        return target

    def tables(self, table: int, field: int) -> list[int]:
        """Return the tables of a vector of tables, none if the field is absent."""
        at = self._field(table, field)
        if at is None:
            return []
        vector = self.follow(at)
        count = self._unpack("<I", vector)
        self._left -= count
        if self._left < 0:
            raise OutOfBounds("too many tables")
        return [self.follow(vector + 4 + 4 * number) for number in range(count)]

    def table(self, table: int, field: int) -> int | None:
        """Return where a field's table is, None if it is absent."""
        at = self._field(table, field)
        return None if at is None else self.follow(at)

    def vector(self, table: int, field: int) -> tuple[int, int] | None:
        """Return start and size of a vector of bytes, None if it is absent or empty."""
        at = self._field(table, field)
        if at is None:
            return None
        vector = self.follow(at)
        size = self._unpack("<I", vector)
        self._check(vector + 4, size)
        return (vector + 4, size) if size else None

    def scalar(self, table: int, field: int, form: str) -> int:
        """Return a number, 0 if it is absent."""
        at = self._field(table, field)
        return 0 if at is None else self._unpack(form, at)

    def numbers(self, table: int, field: int, form: str, most: int) -> list[int]:
        """Return a vector of numbers of one form, such as ``<i``; empty if it is absent."""
        at = self._field(table, field)
        if at is None:
            return []
        vector, width = self.follow(at), struct.calcsize(form)
        count = self._unpack("<I", vector)
        if count > most:
            raise OutOfBounds("too many numbers")
        self._check(vector + 4, count * width)
        places = range(vector + 4, vector + 4 + count * width, width)
        return [self._unpack(form, place) for place in places]

    def name(self, table: int, field: int) -> str:
        """Return a text's first 500 bytes, empty if it is absent."""
        found = self.vector(table, field)
        return "" if found is None else self.text(found[0], min(found[1], 500))

    def text(self, start: int, size: int) -> str:
        """Return a name."""
        return bytes(self._data[start : start + size]).decode("utf-8", "replace")

    def _field(self, table: int, field: int) -> int | None:
        known = table - self._unpack("<i", table)
        entry = 4 + 2 * field
        if entry + 2 > self._unpack("<H", known):
            return None
        offset = self._unpack("<H", known + entry)
        return table + offset if offset else None

    def _unpack(self, form: str, at: int) -> int:
        self._check(at, struct.calcsize(form))
        value: int = struct.unpack_from(form, self._data, at)[0]
        return value

    def _check(self, at: int, size: int) -> None:
        if at < 0 or at + size > len(self._data):
            raise OutOfBounds("an offset leads out of the file")
