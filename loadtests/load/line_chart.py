"""Draws line charts as SVG, with colours that the page's style sheet names. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 560, 300
_LEFT, _RIGHT, _TOP, _FLOOR = 64, 16, 44, 250
_MOST_MARKERS = 30


@dataclass(frozen=True)
class ChartSeries:
    """A line: its name and its points; a point without a value interrupts it."""

    name: str
    points: Sequence[tuple[float, float | None]]


def line_chart(title: str, x_label: str, y_label: str, series: Sequence[ChartSeries], mark: float | None = None) -> str:
    """Return a chart of lines with a marker at each point.

    Args:
        title: what it shows.
        x_label: the horizontal axis's name and unit.
        y_label: the vertical axis's name and unit; it begins at 0.
        series: the lines, at most six.
        mark: a value to draw a dashed line at, such as an objective.
    """
    xs = [x for line in series for x, _ in line.points]
    ys = [y for line in series for _, y in line.points if y is not None]
    low, high = min(xs, default=0.0), max(xs, default=1.0)
    if low > 0 and low < high / 3:
        low = 0.0
    top = max([*ys, *([mark] if mark is not None and ys and mark < 3 * max(ys) else [])], default=1.0) or 1.0
    step = nice_step(top)
    top = math.ceil(top / step - 1e-9) * step

    def across(x: float) -> float:
        return _LEFT + (x - low) / ((high - low) or 1.0) * (WIDTH - _LEFT - _RIGHT)

    def up(y: float) -> float:
        return _FLOOR - y / top * (_FLOOR - _TOP)

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">',
        f"<title>{escape(title)}</title>",
    ]
    for tick in range(round(top / step) + 1):
        y = up(tick * step)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}"/>')
        parts.append(_text(_LEFT - 8, y + 4, f"{tick * step:g}", "end"))
    across_step = nice_step(high - low) if high > low else 1.0
    first = math.ceil(low / across_step - 1e-9)
    parts += [
        _text(across(tick * across_step), _FLOOR + 18, f"{tick * across_step:g}", "middle")
        for tick in range(first, math.floor(high / across_step + 1e-9) + 1)
    ]
    parts.append(_text((_LEFT + WIDTH - _RIGHT) / 2, _FLOOR + 38, x_label, "middle"))
    parts.append(_text(_LEFT - 56, 14, y_label, "start"))
    if mark is not None and mark <= top:
        parts.append(f'<path class="mark" d="M{_LEFT} {up(mark):.1f}H{WIDTH - _RIGHT}"/>')
    for number, line in enumerate(series):
        drawn, broken = "", True
        for x, value in line.points:
            if value is not None:
                drawn += f"{'M' if broken else 'L'}{across(x):.1f} {up(value):.1f}"
            broken = value is None
        parts.append(f'<path class="line s{number}" d="{drawn}"/>')
        for x, value in line.points if len(line.points) <= _MOST_MARKERS else ():
            if value is not None:
                said = f"{escape(line.name)}: {value:.4g} at {x:.4g}"
                place = f'cx="{across(x):.1f}" cy="{up(value):.1f}" r="3.5"'
                parts.append(f'<circle class="s{number}" {place}><title>{said}</title></circle>')
        left = _LEFT + 4 + number * 96
        parts.append(f'<rect class="s{number}" x="{left}" y="22" width="12" height="12"/>')
        parts.append(_text(left + 17, 32, line.name, "start"))
    return "\n".join([*parts, "</svg>"])


def svg_file(chart: str) -> str:
    """Return a chart as a file of its own, in light colours."""
    colours = ("#0b62d6", "#c2410c", "#15803d", "#7c3aed", "#a16207", "#be185d")
    style = "text { fill: #57606a; } .grid { stroke: #d8dee4; } .mark { stroke: #b3261e; stroke-dasharray: 5 4; } "
    style += ".line { fill: none; stroke-width: 2; } "
    style += " ".join(
        f"rect.s{number}, circle.s{number} {{ fill: {colour}; }} path.s{number} {{ stroke: {colour}; }}"
        for number, colour in enumerate(colours)
    )
    head, _, rest = chart.partition(">")
    attributes = 'xmlns="http://www.w3.org/2000/svg" font-family="system-ui, sans-serif" font-size="12"'
    background = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>'
    return f"{head} {attributes}><style>{style}</style>{background}{rest}\n"


def nice_step(highest: float) -> float:
    """Return a step of 1, 2 or 5 times a power of ten that gives 3 to 7 grid lines up to a positive number."""
    power = 10.0 ** math.floor(math.log10(highest))
    return next(power * part for part in (0.2, 0.5, 1.0, 2.0) if highest / (power * part) <= 6.5)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
