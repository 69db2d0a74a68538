"""Renders a report as one HTML file without scripts: tables, and charts as SVG."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape

from loadtests.load.console import number
from loadtests.load.line_chart import ChartSeries, line_chart
from loadtests.load.report import Report, SegmentResult, TimeLine
from loadtests.load.scenario import Objective

_STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --soft: #57606a; --line: #d8dee4; --page: #fff; --card: #f6f8fa;
  --bad: #b3261e; --c0: #0b62d6; --c1: #c2410c; --c2: #15803d; --c3: #7c3aed; --c4: #a16207; --c5: #be185d; }
@media (prefers-color-scheme: dark) { :root { --text: #e6edf3; --soft: #9da7b1; --line: #30363d; --page: #0d1117;
  --card: #161b22; --bad: #ff8a80; --c0: #58a6ff; --c1: #ff9e64; --c2: #56d364; --c3: #bc8cff; --c4: #e3b341;
  --c5: #ff7eb6; } }
body { margin: 0 auto; max-width: 1200px; padding: 16px; font: 16px/1.5 system-ui, sans-serif; color: var(--text);
  background: var(--page); }
h1 { font-size: 1.6rem; margin: 0.4em 0; } h2 { font-size: 1.2rem; margin: 1.6em 0 0.4em; }
p.soft, dt { color: var(--soft); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; } dd { margin: 0; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; white-space: nowrap; }
th, td { padding: 4px 10px; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 16px; }
figure { margin: 0; padding: 12px; background: var(--card); border-radius: 8px; }
figcaption { font-weight: 600; }
svg { width: 100%; height: auto; font: 12px system-ui, sans-serif; } svg text { fill: var(--soft); }
.grid { stroke: var(--line); } .mark { stroke: var(--bad); stroke-dasharray: 5 4; }
.line { fill: none; stroke-width: 2; }
.bad { color: var(--bad); font-weight: 600; } .tiles { display: flex; flex-wrap: wrap; gap: 12px; }
.tile { background: var(--card); border-radius: 8px; padding: 10px 16px; }
.tile b { display: block; font-size: 1.4rem; }
pre { background: var(--card); padding: 12px; border-radius: 8px; overflow-x: auto; }
""" + "\n".join(
    f"rect.s{i}, circle.s{i} {{ fill: var(--c{i}); }} path.s{i} {{ stroke: var(--c{i}); }}" for i in range(6)
)
_FIGURES = {
    "requests": "requests",
    "failed": "errors",
    "request_throughput": "requests/s",
    "output_throughput": "tokens/s",
    "request_goodput": "goodput/s",
    "slo_attainment": "within SLO",
    "median_ttft_ms": "TTFT p50 ms",
    "p99_ttft_ms": "TTFT p99 ms",
    "median_tpot_ms": "TPOT p50 ms",
    "p99_tpot_ms": "TPOT p99 ms",
    "median_itl_ms": "ITL p50 ms",
    "p99_itl_ms": "ITL p99 ms",
    "median_e2el_ms": "E2E p50 ms",
    "p99_e2el_ms": "E2E p99 ms",
    "max_concurrent_requests": "most at once",
    "server_cpu_cores": "server cores",
    "server_memory_mb": "server MB",
}
_TIME_LINES = 12  # more would make the page long


def html(report: Report) -> str:
    """Return the page."""
    parts = [
        f"<h1>{escape(report.name)}</h1>",
        f'<p class="soft">{escape(str(report.scenario.get("description", "")))}</p>',
        _verdict(report),
        _tiles(report),
        "<h2>Figures</h2>",
        _table("stage", ((_label(segment), segment) for segment in report.segments)),
    ]
    if charts := _rate_charts(report):
        parts += ["<h2>Against the load</h2>", '<div class="charts">', *charts, "</div>"]
    parts += [_work(report), *_time_lines(report), "<h2>How it was measured</h2>", _facts(report)]
    title = f"{escape(report.name)}: load report"
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head>\n<body><main>\n"
        + "\n".join(parts)
        + "\n</main></body></html>\n"
    )


def _verdict(report: Report) -> str:
    bad = [f"The generator was the bottleneck: {text}" for text in report.bottleneck]
    bad += [f"Limit broken: {text}" for text in report.broken_limits]
    if not report.complete:
        bad.append("The run did not end; these are its finished stages.")
    return "".join(f'<p class="bad">{escape(text)}</p>' for text in bad)


def _tiles(report: Report) -> str:
    tiles: list[tuple[str, str]] = []
    if report.sweep:
        tiles += [
            (number(report.sweep.get("saturation_rate")), "requests/s at saturation"),
            (number(report.sweep.get("goodput_rate")), "requests/s within the objective"),
        ]
    rates = [rate for segment in report.segments if (rate := segment.mean("output_throughput")) is not None]
    goodput = [rate for segment in report.segments if (rate := segment.mean("request_goodput")) is not None]
    if rates:
        tiles.append((number(max(rates)), "tokens/s at most"))
    if goodput:
        tiles.append((number(max(goodput)), "good requests/s at most"))
    return (
        '<div class="tiles">'
        + "".join(f'<div class="tile"><b>{value}</b>{escape(text)}</div>' for value, text in tiles)
        + "</div>"
    )


def _table(corner: str, rows: Iterable[tuple[str, SegmentResult]]) -> str:
    lines = ["<tr><th>" + "</th><th>".join([escape(corner), *_FIGURES.values()]) + "</th></tr>"]
    for label, segment in rows:
        cells = []
        for figure in _FIGURES:
            found = segment.estimate(figure)
            width = f" ± {number(found.half_width)}" if found and found.half_width is not None else ""
            cells.append(number(found.mean if found else None) + width)
        lines.append("<tr><td>" + "</td><td>".join([escape(label), *cells]) + "</td></tr>")
    return f'<div class="scroll" tabindex="0"><table>{"".join(lines)}</table></div>'


def _work(report: Report) -> str:
    if not any(len(segment.work) > 1 for segment in report.segments):
        return ""
    lines = ["<tr><th>stage</th><th>work</th><th>" + "</th><th>".join(_FIGURES.values()) + "</th></tr>"]
    for segment in report.segments:
        for work, values in segment.work.items():
            cells = [number(values.get(figure)) for figure in _FIGURES]
            lines.append("<tr><td>" + "</td><td>".join([escape(_label(segment)), escape(work), *cells]) + "</td></tr>")
    return f'<h2>By kind of work</h2><div class="scroll" tabindex="0"><table>{"".join(lines)}</table></div>'


def _rate_charts(report: Report) -> list[str]:
    """Return the charts of latency and throughput against the rate, or against the number of users."""
    users = bool(report.segments) and report.segments[0].users is not None
    load = {id(segment): float(segment.users or segment.rate or 0.0) for segment in report.segments}
    ordered = sorted(report.segments, key=lambda segment: load[id(segment)])
    if len({*load.values()}) < 2:
        return []
    axis = "users" if users else "requests/s that were due"

    def chart(title: str, unit: str, figures: dict[str, str], mark: float | None = None) -> str:
        lines = [
            ChartSeries(name, [(load[id(segment)], segment.mean(figure)) for segment in ordered])
            for figure, name in figures.items()
        ]
        return _figure(title, axis, unit, lines, mark)

    def latencies(name: str) -> dict[str, str]:
        return {f"median_{name}_ms": "p50", f"p90_{name}_ms": "p90", f"p99_{name}_ms": "p99"}

    slo = Objective.model_validate(report.scenario.get("slo", {}))
    counts = {"request_throughput": "ended", "request_goodput": "good", "offered_rate": "due"}
    return [
        chart("Time to first token", "ms", latencies("ttft"), slo.ttft_ms),
        chart("Time per output token", "ms", latencies("tpot"), slo.itl_ms),
        chart("Requests per second", "1/s", counts),
        chart("Tokens per second", "1/s", {"output_throughput": "generated"}),
        chart("End to end", "ms", latencies("e2el"), slo.e2e_ms),
        chart("Server", "cores", {"server_cpu_cores": "processor"}),
    ]


def _time_lines(report: Report) -> list[str]:
    parts = ["<h2>Over time</h2>"] if report.time_lines else []
    for line in report.time_lines[:_TIME_LINES]:
        repeated = f", repetition {line.repetition + 1}" if line.repetition else ""
        parts += [f"<h3>{escape(line.stage)}{repeated}</h3>", '<div class="charts">', *_time_charts(line), "</div>"]
    if len(report.time_lines) > _TIME_LINES:
        parts.append(f'<p class="soft">{len(report.time_lines) - _TIME_LINES} more are in report.json.</p>')
    return parts


def _time_charts(line: TimeLine) -> list[str]:
    def series(**fields: str) -> list[ChartSeries]:
        return [
            ChartSeries(name, [(point.at, getattr(point, field)) for point in line.points])
            for field, name in fields.items()
        ]

    charts = [
        _figure("Requests", "seconds", "", series(running="running", requests="due", errors="errors")),
        _figure("Tokens per second", "seconds", "1/s", series(tokens_per_second="generated")),
        _figure("Time to first token", "seconds", "ms", series(ttft_p50_ms="p50", ttft_p99_ms="p99")),
    ]
    if any(point.cpu_cores is not None for point in line.points):
        charts.append(_figure("Server's processor", "seconds", "cores", series(cpu_cores="cores")))
    if any(point.memory_mb is not None for point in line.points):
        charts.append(_figure("Server's memory", "seconds", "MB", series(memory_mb="resident")))
    return charts


def _figure(title: str, x_label: str, y_label: str, series: Sequence[ChartSeries], mark: float | None = None) -> str:
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>{line_chart(title, x_label, y_label, series, mark)}</figure>"
    )


def _facts(report: Report) -> str:
    facts = {
        "server": report.target,
        "model": report.model or "the server's default",
        "started": report.started,
        "generator": f"{report.workers} process{'es' * (report.workers > 1)}",
        **{f"generator's {name}": value for name, value in report.machine.items()},
        **{f"prompts' {name.replace('_', ' ')}": f"{value:g}" for name, value in report.prompts.items()},
    }
    lines = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    scenario = escape(json.dumps(report.scenario, indent=1, ensure_ascii=False))
    return f"<dl>{lines}</dl><details><summary>Scenario</summary><pre>{scenario}</pre></details>"


def _label(segment: SegmentResult) -> str:
    return segment.name if segment.name == segment.stage else f"{segment.stage}: {segment.name}"
