"""Draws tokens per second by number of clients as a bar chart, in a self-contained SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

from loadtests.peers.report import Figures

# The chart is readable without colours too: the bars have the legend's order, and each shows its value.
_COLOURS = ("#0b6e4f", "#4c78a8", "#9ecae9", "#f58518", "#b279a2", "#9d755d", "#bab0ac")
_WIDTH, _HEIGHT = 960, 460
_LEFT, _RIGHT, _BOTTOM = 60, 20, 50
_LEGEND_TOP, _LINE = 64, 20
_LEGEND_COLUMNS = 3
_TEXT = "#222"


def chart(figures: dict[str, Figures], clients: Sequence[int], subtitle: str) -> str:
    """Return the chart as SVG.

    Args:
        figures: the medians by server; the first server is drawn in green.
        clients: the numbers of clients, one group of bars each, left to right.
        subtitle: the line under the title, such as the machine.
    """
    names = list(figures)
    legend_lines = math.ceil(len(names) / _LEGEND_COLUMNS)
    top, floor = _LEGEND_TOP + legend_lines * _LINE + 20, _HEIGHT - _BOTTOM
    values = {(name, count): figures[name].get(f"tokens_per_second@{count}") for name in names for count in clients}
    step = _step(max((value for value in values.values() if value), default=1.0))
    ticks = math.ceil(max((value for value in values.values() if value), default=1.0) / step)
    scale = (floor - top) / (ticks * step)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="13" fill="{_TEXT}">',
        "<title>Streamed tokens per second</title>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
        _text(_LEFT, 26, "Streamed tokens per second, all clients together", size=18, weight="600"),
        _text(_LEFT, 46, subtitle, colour="#666"),
    ]
    for index, name in enumerate(names):
        row, column = divmod(index, _LEGEND_COLUMNS)
        at = (_LEFT + column * 300, _LEGEND_TOP + row * _LINE)
        parts += [_bar(*at, 12, 12, index), _text(at[0] + 18, at[1] + 11, name)]
    for tick in range(ticks + 1):
        y = floor - tick * step * scale
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" stroke="{"#888" if tick == 0 else "#e4e4e4"}"/>')
        parts.append(_text(_LEFT - 8, y + 4, f"{tick * step:g}", anchor="end", colour="#666"))
    group = (_WIDTH - _LEFT - _RIGHT) / len(clients)
    bar = group * 0.84 / len(names)
    for place, count in enumerate(clients):
        left = _LEFT + place * group + group * 0.08
        for index, name in enumerate(names):
            value, x = values[name, count], left + index * bar
            if value is None:
                parts.append(_text(x + bar / 2, floor - 5, "-", anchor="middle", size=11, colour="#666"))
                continue
            parts.append(_bar(x + 1, floor - value * scale, bar - 2, value * scale, index))
            parts.append(_text(x + bar / 2, floor - value * scale - 4, f"{value:.0f}", anchor="middle", size=11))
        label = f"{count} client{'' if count == 1 else 's'}"
        parts.append(_text(left + group * 0.42, floor + 22, label, anchor="middle", size=14))
    return "\n".join([*parts, "</svg>\n"])


def _step(highest: float) -> float:
    """Return a step of 1, 2 or 5 times a power of ten that gives 3 to 7 grid lines."""
    power = 10.0 ** math.floor(math.log10(highest))
    return next(power * part for part in (0.2, 0.5, 1.0, 2.0) if highest / (power * part) <= 6.5)


def _bar(x: float, y: float, width: float, height: float, index: int) -> str:
    colour = _COLOURS[index % len(_COLOURS)]
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}"/>'


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", size: int = 13, weight: str = "400", colour: str = _TEXT
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}" '
        f'fill="{colour}">{escape(text)}</text>'
    )
