"""The numbers of the wire: times, sequences, epochs and counts, as far as both sides can hold them.

A number above the bound is refused where it is read. JSON knows no bound of its own, but what a
device is told comes back in its progress (MessagePack, 64 bits) and goes into a database.
"""

from typing import Annotated

from msgspec import Meta

from fleet_contract import limits

Count = Annotated[int, Meta(ge=0, le=limits.LARGEST_INTEGER)]
"""A time, a sequence or a number of things."""
