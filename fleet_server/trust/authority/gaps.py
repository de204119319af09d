"""Times of which this server remembers nothing: between a backup and the restore from it.

A certificate that was issued in such a time is not written down, yet its device holds no other. So
for these certificates alone the authority's signature is enough. The price: whoever has stolen the
authority's key can mint one that pretends to be of that time; a rotation ends that.
"""

from pathlib import Path

import msgspec

from fleet_contract import codec, limits
from fleet_contract.errors import Refused
from fleet_server.trust import durable

FILE = "gaps.json"
SLACK_MS = 60_000
"""A certificate's times are whole seconds, and the backup was made while the server went on."""


class Gap(msgspec.Struct, frozen=True):
    """From the backup to the restore, by the servers' clocks."""

    from_ms: int
    until_ms: int


class Gaps(msgspec.Struct, frozen=True):
    """All that there were, the oldest first."""

    gaps: list[Gap] = []

    def cover(self, at_ms: int) -> bool:
        """Say whether a time is one of which nothing is remembered."""
        return any(gap.from_ms - SLACK_MS <= at_ms <= gap.until_ms for gap in self.gaps)


def read_gaps(folder: Path) -> Gaps:
    """Return the gaps that are written down in the authorities' folder.

    Raises:
        OSError: if they cannot be read.
        ValueError: if they are damaged.
    """
    try:
        data = (folder / FILE).read_bytes()
        return codec.decode_json(data, Gaps, limit_bytes=limits.STATUS_BYTES)
    except FileNotFoundError:
        return Gaps()
    except Refused as error:
        raise ValueError(f"{FILE} is damaged") from error


def add_gap(folder: Path, from_ms: int, until_ms: int) -> None:
    """Write down one more. Raises OSError and ValueError."""
    before = read_gaps(folder).gaps
    gaps = Gaps([*before, Gap(from_ms, until_ms)])
    durable.write_file(folder / FILE, codec.encode_json(gaps))
