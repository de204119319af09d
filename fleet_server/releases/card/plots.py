"""Which pictures a card has, by name, and what each says in words."""

from collections.abc import Sequence

import msgspec

from fleet_server.releases.card import charts
from fleet_server.releases.card.charts import Bar
from fleet_server.releases.card.content import Card, FeatureLine
from fleet_server.releases.states import NOT_THE_TARGET

_OUTPUTS, _INPUTS = 4, 6
"""Pictures of single features; the table of the card names all."""


class Plot(msgspec.Struct, frozen=True):
    """A picture: its title, what one would see, and the SVG."""

    title: str
    description: str
    svg: str


def draw(card: Card) -> dict[str, Plot]:
    """Return the pictures of a card, name → picture, in the order in which they are shown."""
    found = {
        "candidates-size": _sizes(card),
        "candidates-latency": _latencies(card),
        "confusion": _confusion(card),
        "differences": _differences(card),
    }
    for side, most in (("output", _OUTPUTS), ("input", _INPUTS)):
        lines = [line for line in card.features if line.side == side and line.shares]
        for number, line in enumerate(_telling(lines)[:most]):
            found[f"{side}-{number}"] = _feature(line)
    return {name: plot for name, plot in found.items() if plot is not None}


def _telling(lines: Sequence[FeatureLine]) -> list[FeatureLine]:
    """Those spread over most bins first: a column that is always 0 shows nothing."""
    return sorted(lines, key=lambda line: (not line.labels, max(line.shares)))


def _sizes(card: Card) -> Plot | None:
    rows = [Bar("float (as pushed)", card.source_bytes, _size(card.source_bytes))]
    rows += [
        Bar(item.recipe, item.size_bytes, _size(item.size_bytes), _kind(item.passes, item.chosen))
        for item in card.candidates
        if item.size_bytes is not None
    ]
    if len(rows) < 2:
        return None
    title = "Size of the forms that were tried"
    said = "; ".join(f"{row.label} {row.shown}" for row in rows)
    description = f"{said}. The strong bar ships, orange ones failed parity."
    return Plot(title, description, charts.bars(title, description, rows))


def _latencies(card: Card) -> Plot | None:
    timed = [item for item in card.candidates if item.latency_us is not None]
    if not timed:
        return None
    rows = [
        Bar(
            item.recipe,
            (item.latency_us or 0) / (item.float_latency_us or 1),
            f"{item.latency_us:.0f} of {item.float_latency_us:.0f} µs",
            _kind(item.passes, item.chosen),
        )
        for item in timed
    ]
    rows.insert(0, Bar("float (as pushed)", 1.0, "the measure"))
    title = f"Time of one row against float, on {timed[0].timed_on or NOT_THE_TARGET}"
    description = "; ".join(f"{row.label} {row.shown}" for row in rows)
    return Plot(title, description, charts.bars(title, description, rows))


def _confusion(card: Card) -> Plot | None:
    found = card.comparison
    if not found.confusion:
        return None
    off = sum(sum(row) for row in found.confusion) - sum(
        row[number] for number, row in enumerate(found.confusion)
    )
    title = "Which classes the two models name on the golden rows"
    description = (
        f"Off the diagonal: {off} of {found.rows} rows on which the shipped model names another "
        "class than the float model."
    )
    return Plot(
        title, description, charts.table(title, description, found.classes, found.confusion)
    )


def _differences(card: Card) -> Plot | None:
    found = card.comparison
    if not found.histogram:
        return None
    title = "How far outputs are from the float model's"
    description = (
        f"Golden rows by their largest difference in any output, from 0 to "
        f"{found.largest_difference:.4g}."
    )
    shares = [count / found.rows for count in found.histogram]
    unit = "largest difference of a row, in units of the output"
    svg = charts.histogram(title, description, shares, 0.0, found.largest_difference, unit)
    return Plot(title, description, svg)


def _feature(line: FeatureLine) -> Plot:
    title = f"{line.side.capitalize()} {line.name} on the baseline data"
    if line.labels:
        description = "Shares: " + ", ".join(
            f"{label} {share:.1%}" for label, share in zip(line.labels, line.shares, strict=True)
        )
        rows = [
            Bar(label, share, f"{share:.1%}", "h")
            for label, share in zip(line.labels, line.shares, strict=True)
        ]
        return Plot(title, description, charts.bars(title, description, rows))
    low, high = line.minimum or 0.0, line.maximum or 0.0
    middle = "" if line.mean is None else f", mean {line.mean:.4g}"
    description = f"{line.rows} rows from {low:.4g} to {high:.4g}{middle}."
    svg = charts.histogram(title, description, line.shares, low, high, line.made_from)
    return Plot(title, description, svg)


def _kind(passes: bool, chosen: bool) -> str:
    return "h" if chosen else "b" if passes else "w"


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1024:,.1f} KiB"
