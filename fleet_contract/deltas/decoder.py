"""Makes the new file from the old one and a patch, piece by piece, in bounded memory.

Decides when a patch is refused: on the first byte that is not what the form allows, before it asks
for memory or writes. It neither opens files nor hashes: whoever calls it reads the old file, writes
what is yielded, and believes the result only if its SHA-256 is the one that the manifest names.
"""

from collections.abc import Callable, Iterator

from fleet_contract.deltas.form import (
    GROUP_BYTES,
    GROUP_OPERATIONS,
    HEADER_BYTES,
    LAYERS,
    NUMBER_BYTES,
    SPARSE,
    WIDTHS,
    WINDOW_LOG,
    Header,
    Integers,
    Kind,
    Operation,
    from_gaps,
    from_planes,
    integers,
    layer,
    most_operations,
    read_header,
    undo,
    unfold,
)
from fleet_contract.deltas.zstandard import zstd
from fleet_contract.errors import Reason, Refused

ReadPatch = Callable[[int], bytes]
"""Returns at least one and at most so many of the patch's next bytes, none at its end."""
ReadOld = Callable[[int, int], bytes]
"""Returns the old file's bytes from an offset on, as many as asked for."""

_INPUT_BYTES = 32 * 1024


class Decoder:
    """One patch that is being applied.

    Attributes:
        header: which file it is for; the caller compares it with what it wants and has.
    """

    def __init__(self, read_patch: ReadPatch) -> None:
        """Read the header.

        Raises:
            Refused: ``malformed`` or ``too_large``.
        """
        head = b""
        while len(head) < HEADER_BYTES and (more := read_patch(HEADER_BYTES - len(head))):
            head += more
        self.header: Header = read_header(head)
        self._content = _Content(read_patch)
        self._at_old = 0
        self._operations_left = most_operations(self.header.new_bytes)

    def pieces(self, read_old: ReadOld) -> Iterator[bytes]:
        """Yield the new file from its beginning: never more than the header says.

        Raises:
            Refused: ``malformed`` if the patch breaks a rule, ``wrong_size`` if the old file does
                not have what it refers to.
        """
        left = self.header.new_bytes
        while left > 0:
            operations = self._read_operations(left)
            left -= sum(operation.size_bytes for operation in operations)
            yield from self._apply(operations, read_old)
        self._content.end()

    def _read_operations(self, left: int) -> list[Operation]:
        count = self._content.number()
        if not 1 <= count <= min(GROUP_OPERATIONS, self._operations_left):
            raise Refused(Reason.MALFORMED, f"a group of {count} operations")
        self._operations_left -= count
        operations = []
        held = 0
        for _ in range(count):
            operation = self._read_operation()
            left -= operation.size_bytes
            held += 0 if operation.kind is Kind.COPY else operation.size_bytes
            if left < 0 or held > GROUP_BYTES:
                raise Refused(Reason.MALFORMED, "an operation is longer than it may be")
            operations.append(operation)
        return operations

    def _read_operation(self) -> Operation:
        code = self._content.take(1)[0]
        kind, width_log = code >> 4, code & 15
        if kind not in Kind._value2member_map_ or width_log >= len(WIDTHS):
            raise Refused(Reason.MALFORMED, f"an operation of unknown kind {code}")
        width, size = WIDTHS[width_log], self._content.number()
        if size == 0 or size % width:
            raise Refused(Reason.MALFORMED, f"{size} bytes of {width}-byte integers")
        if kind == Kind.LITERAL:
            return Operation(Kind.LITERAL, width, size)
        base = self._at_old + unfold(self._content.number())
        if base < 0 or base + size > self.header.old_bytes:
            raise Refused(Reason.MALFORMED, "an operation reaches outside of the old file")
        self._at_old = base + size
        return Operation(Kind(kind), width, size, base)

    def _apply(self, operations: list[Operation], read_old: ReadOld) -> Iterator[bytes]:
        sizes = dict.fromkeys(LAYERS, 0)
        for operation in operations:
            if operation.kind is not Kind.COPY:
                sizes[layer(operation)] += operation.size_bytes
        held = {
            kind: from_planes(self._planes(size // kind[1], kind[1]), kind[1])
            for kind, size in sizes.items()
            if size
        }
        used = dict.fromkeys(LAYERS, 0)
        made: list[bytes] = []
        waiting = 0
        for operation in operations:
            if waiting + operation.size_bytes > GROUP_BYTES:
                yield b"".join(made)
                made, waiting = [], 0
            if operation.kind is Kind.COPY:
                yield from _copied(operation, read_old, made)
                waiting = sum(map(len, made))
                continue
            place = layer(operation)
            count = operation.size_bytes // operation.width_bytes
            part = held[place][used[place] : used[place] + count]
            used[place] += count
            made.append(_made(operation, part, read_old))
            waiting += operation.size_bytes
        if made:
            yield b"".join(made)

    def _planes(self, size: int, count: int) -> bytes:
        return b"".join(self._plane(size) for _ in range(count))

    def _plane(self, size: int) -> bytes:
        form = self._content.number()
        if form == 0:
            return self._content.take(size)
        kept = form - 1
        if kept > size // SPARSE:
            raise Refused(Reason.MALFORMED, f"{kept} gaps in a plane of {size} bytes")
        return from_gaps(self._content.take(kept), self._content.take(kept), size)


def _copied(operation: Operation, read_old: ReadOld, made: list[bytes]) -> Iterator[bytes]:
    """Put a short copy to the others, yield a long one."""
    if operation.size_bytes <= GROUP_BYTES:
        made.append(_old(read_old, operation.base, operation.size_bytes))
        return
    end = operation.base + operation.size_bytes
    for start in range(operation.base, end, GROUP_BYTES):
        yield _old(read_old, start, min(GROUP_BYTES, end - start))


def _made(operation: Operation, held: Integers, read_old: ReadOld) -> bytes:
    if operation.kind is Kind.LITERAL:
        return held.tobytes()
    old = _old(read_old, operation.base, operation.size_bytes)
    return undo(operation.kind, held, integers(old, operation.width_bytes)).tobytes()


def _old(read_old: ReadOld, start: int, size: int) -> bytes:
    data = read_old(start, size)
    if len(data) != size:
        raise Refused(Reason.WRONG_SIZE, "the old file is shorter than the patch says")
    return data


class _Content:
    """What is in the compressed part of a patch, in order."""

    def __init__(self, read_patch: ReadPatch) -> None:
        self._read = read_patch
        options = {zstd.DecompressionParameter.window_log_max: WINDOW_LOG}
        self._frame = zstd.ZstdDecompressor(options=options)
        self._ready = b""

    def take(self, size: int) -> bytes:
        """Return so many bytes, which the caller has bounded."""
        if size <= len(self._ready):
            taken, self._ready = self._ready[:size], self._ready[size:]
            return taken
        taken = self._ready + self._decompressed(size - len(self._ready))
        self._ready = b""
        return taken

    def number(self) -> int:
        """Return a number of at most 64 bits."""
        if len(self._ready) < NUMBER_BYTES:
            # Read ahead a little: numbers come one after the other.
            self._ready += self._decompressed(1024, at_least=0)
        value = 0
        for position, byte in enumerate(self._ready[:NUMBER_BYTES]):
            value |= (byte & 0x7F) << (7 * position)
            if byte < 0x80:
                self._ready = self._ready[position + 1 :]
                return value
        raise Refused(Reason.MALFORMED, "a number has no end")

    def end(self) -> None:
        """Check that nothing follows."""
        if self._ready or self._decompressed(1, at_least=0) or not self._frame.eof:
            raise Refused(Reason.MALFORMED, "the patch goes on after the file's end")
        if self._frame.unused_data or self._read(1):
            raise Refused(Reason.MALFORMED, "something follows the patch")

    def _decompressed(self, size: int, *, at_least: int | None = None) -> bytes:
        """Return the next ``size`` bytes; fewer, but ``at_least``, only at the end."""
        parts, left = [], size
        while left > 0 and not self._frame.eof:
            fresh = self._read(_INPUT_BYTES) if self._frame.needs_input else b""
            if self._frame.needs_input and not fresh:
                break
            try:
                part = self._frame.decompress(fresh, max_length=left)
            except zstd.ZstdError as error:
                raise Refused(Reason.MALFORMED, f"the patch is damaged: {error}"[:200]) from error
            left -= len(part)
            parts.append(part)
        if size - left < (size if at_least is None else at_least):
            raise Refused(Reason.MALFORMED, "the patch ends too early")
        return b"".join(parts)
