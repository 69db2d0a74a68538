"""Makes ``docs/speed.svg`` from the comparison with other servers in ``loadtests/ENGINE.md``."""

from __future__ import annotations

import re
from html import escape
from pathlib import Path

_FIGURES = Path(__file__).resolve().parents[2] / "loadtests/ENGINE.md"
_CLIENTS = (1, 8, 16, 32)
_WIDTH, _BAR, _GAP, _LEFT, _TOP = 720, 16, 14, 270, 64
_COLOURS = ("#d9480f", "#4c6ef5", "#868e96", "#adb5bd")
_STYLE = """<style>
text { font: 13px system-ui, sans-serif; fill: #212529 }
@media (prefers-color-scheme: dark) { text { fill: #e9ecef } }
</style>"""


def chart() -> str:
    """Return the chart: tokens per second of each server, a group of bars for each number of clients."""
    rows = _rows()
    most = max(value for values in rows.values() for value in values if value)
    height = _TOP + sum(len(_CLIENTS) * (_BAR + 2) + _GAP for _ in rows)
    title = "Tokens per second, SmolLM2-135M on two cores, all clients together"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{title}">',
        _STYLE,
        f'<text x="8" y="22" style="font-weight:600">{title}</text>',
        '<text x="8" y="44">85-token prompts, 64 new tokens, streamed over HTTP; 1, 8, 16 and 32 clients</text>',
    ]
    y = _TOP
    for (name, values), colour in zip(rows.items(), _COLOURS, strict=False):
        parts.append(f'<text x="8" y="{y + 13}">{escape(name)}</text>')
        for clients, value in zip(_CLIENTS, values, strict=True):
            width = (value or 0) / most * (_WIDTH - _LEFT - 60)
            parts.append(f'<text x="{_LEFT - 8}" y="{y + 13}" text-anchor="end">{clients}</text>')
            parts.append(f'<rect x="{_LEFT}" y="{y}" width="{width:.1f}" height="{_BAR}" fill="{colour}"/>')
            shown = f"{value:g}" if value else "not run"
            parts.append(f'<text x="{_LEFT + width + 6:.1f}" y="{y + 13}">{shown}</text>')
            y += _BAR + 2
        y += _GAP
    return "\n".join([*parts, "</svg>"]) + "\n"


def _rows() -> dict[str, list[float | None]]:
    """Return each server's tokens per second for each number of clients; None where it was not measured."""
    table = _FIGURES.read_text().partition("## Comparison with other servers")[2].partition("\nRatio of")[0]
    head, _, *lines = [line.strip("| ").split(" | ") for line in re.findall(r"^\|.*\|$", table, re.MULTILINE)]
    columns = [next(i for i, name in enumerate(head) if re.match(rf"{n} clients? tok/s", name)) for n in _CLIENTS]
    return {line[0]: [None if line[i] == "-" else float(line[i].replace(",", "")) for i in columns] for line in lines}
