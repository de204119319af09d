"""A card as it is stored: its data, its Markdown and its pictures in one file of JSON.

Rendered once, at sealing: what people approved is what they see years later, whatever the server
has learnt to draw since.
"""

import msgspec

from fleet_contract import codec
from fleet_server.releases.card import markdown, plots
from fleet_server.releases.card.content import Card
from fleet_server.releases.card.plots import Plot

BUNDLE_BYTES = 8 * 1024**2
"""A card of a thousand features and a hundred candidates takes below one."""


class Bundle(msgspec.Struct, frozen=True):
    """A card in all its forms; ``plots`` by name, in the order in which they are shown."""

    card: Card
    markdown: str
    plots: dict[str, Plot]


def render(card: Card) -> bytes:
    """Return the file of a card; the same card gives the same bytes."""
    drawn = plots.draw(card)
    return codec.encode_json(Bundle(card, markdown.render(card, drawn), drawn))


def read(data: bytes) -> Bundle:
    """Return what :func:`render` wrote.

    Raises:
        Refused: if it is not that.
    """
    return codec.decode_json(data, Bundle, limit_bytes=BUNDLE_BYTES)
