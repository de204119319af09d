"""Draws bars, histograms and tables of counts as SVG: text in, text out, the same for the same.

Decides looks: colours follow the reader's light or dark mode, every picture carries its title and
a description for those who cannot see it. It is our own and not a plotting library's, since three
kinds of picture need no 100 MB of packages on the server, nor 40 MiB of its memory.
"""

import html
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

_WIDTH, _LEFT, _RIGHT, _TOP = 640, 190, 130, 48
_ROW, _HEIGHT = 26, 180
_LABEL_CHARACTERS = 26
_STYLE = (
    "svg{background:#fff;font:13px system-ui,sans-serif}"
    "text{fill:#1f2933}.t{font-size:15px;font-weight:600}.s{fill:#52606d}"
    ".b{fill:#7b93ad}.h{fill:#0b6bcb}.w{fill:#c2410c}.g{stroke:#9aa5b1;stroke-width:1}"
    ".c{fill:#0b6bcb}.x{fill:#c2410c}"
    "@media(prefers-color-scheme:dark){svg{background:#15191e}text{fill:#e4e7eb}.s{fill:#9aa5b1}"
    ".b{fill:#5b7089}.h{fill:#5aa9f0}.w{fill:#f59e6b}.g{stroke:#52606d}"
    ".c{fill:#5aa9f0}.x{fill:#f59e6b}}"
)


class Bar(NamedTuple):
    """One bar: its label, its length in the unit of the chart, what is written at its end, and
    its kind: ``b`` as any, ``h`` the one that it is about, ``w`` one that failed.
    """

    label: str
    value: float
    shown: str
    kind: str = "b"


def bars(title: str, description: str, rows: Sequence[Bar]) -> str:
    """Return horizontal bars from zero, one below the other."""
    most = max((row.value for row in rows), default=0.0) or 1.0
    span = _WIDTH - _LEFT - _RIGHT
    parts = []
    for number, row in enumerate(rows):
        y = _TOP + number * _ROW
        length = max(0.0, row.value) / most * span
        parts += [
            _text(_LEFT - 8, y + 15, _short(row.label), "end"),
            f'<rect class="{row.kind}" x="{_LEFT}" y="{y + 3}" width="{length:.1f}" '
            f'height="{_ROW - 8}" rx="2"/>',
            _text(_LEFT + length + 6, y + 15, row.shown, style="s"),
        ]
    bottom = _TOP + len(rows) * _ROW
    parts.append(f'<path class="g" d="M{_LEFT} {_TOP}V{bottom}"/>')
    return _frame(title, description, bottom + 14, parts)


def histogram(
    title: str, description: str, shares: Sequence[float], low: float, high: float, unit: str
) -> str:
    """Return columns of equal width between two values; the tallest fills the height."""
    left, right, bottom = 24, _WIDTH - 24, _TOP + _HEIGHT
    most = max(shares, default=0.0) or 1.0
    step = (right - left) / max(1, len(shares))
    parts = [
        f'<rect class="h" x="{left + number * step + 0.5:.1f}" '
        f'y="{bottom - share / most * _HEIGHT:.1f}" width="{step - 1:.1f}" '
        f'height="{share / most * _HEIGHT:.1f}"/>'
        for number, share in enumerate(shares)
    ]
    parts += [
        f'<path class="g" d="M{left} {bottom}H{right}"/>',
        _text(left, bottom + 18, f"{low:.4g}", style="s"),
        _text((left + right) / 2, bottom + 18, unit, "middle", "s"),
        _text(right, bottom + 18, f"{high:.4g}", "end", "s"),
        _text(right, _TOP - 6, f"tallest: {most:.1%} of rows", "end", "s"),
    ]
    return _frame(title, description, bottom + 30, parts)


def table(
    title: str, description: str, labels: Sequence[str], counts: Sequence[Sequence[int]]
) -> str:
    """Return a square of counts: rows the float model's classes, columns the shipped model's."""
    cell = min(44, (_WIDTH - _LEFT - 20) // max(1, len(labels)))
    top = _TOP + 40
    row_most = [max(1, sum(row)) for row in counts]
    parts = [_text(_LEFT, _TOP + 8, "shipped model names", style="s")]
    parts.append(_text(_LEFT - 8, top - 8, "float model names", "end", "s"))
    for number, label in enumerate(labels):
        letters = max(1, cell // 9)
        parts.append(
            _text(_LEFT + number * cell + cell / 2, top - 8, _short(label, letters), "middle")
        )
        y = top + number * cell
        parts.append(_text(_LEFT - 8, y + cell / 2 + 5, _short(label), "end"))
        for other, count in enumerate(counts[number]):
            x = _LEFT + other * cell
            kind = "c" if other == number else "x"
            # A single row that moved must be seen beside thousands that did not.
            depth = 0.0 if not count else 0.2 + 0.4 * count / row_most[number]
            parts.append(
                f'<rect class="{kind}" fill-opacity="{depth:.2f}" x="{x}" y="{y}" '
                f'width="{cell - 1}" height="{cell - 1}"/>'
            )
            if count:
                parts.append(_text(x + cell / 2, y + cell / 2 + 5, str(count), "middle"))
    return _frame(title, description, top + len(labels) * cell + 14, parts)


def clean(text: str) -> str:
    """Return text without characters that control, hide or turn the direction of others."""
    return "".join(c if unicodedata.category(c)[0] != "C" else " " for c in text)


def _frame(title: str, description: str, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-labelledby="t d" '
        f'viewBox="0 0 {_WIDTH} {height:.0f}" width="{_WIDTH}" height="{height:.0f}">'
        f'<title id="t">{_escape(title)}</title><desc id="d">{_escape(description)}</desc>'
        f"<style>{_STYLE}</style>" + _text(16, 26, title, style="t") + "".join(parts) + "</svg>\n"
    )


def _text(x: float, y: float, text: str, anchor: str = "start", style: str = "") -> str:
    kind = f' class="{style}"' if style else ""
    return f'<text{kind} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{_escape(text)}</text>'


def _short(text: str, characters: int = _LABEL_CHARACTERS) -> str:
    return text if len(text) <= characters else text[: max(1, characters - 1)] + "…"


def _escape(text: str) -> str:
    return html.escape(clean(text))
