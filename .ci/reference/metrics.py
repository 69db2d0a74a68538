"""Makes ``docs/metrics.md`` from the metrics that a service registers."""

from __future__ import annotations

from prometheus_client import parser
from prometheus_client.metrics_core import Metric

from runtime.status import CacheStats, Memory, ModelStatus
from runtime.telemetry.exposition import ServiceStats, service_families
from runtime.telemetry.metrics import Metrics

_HEAD = """# Metrics

Made from the metrics that a service registers by `.ci/reference`. `GET /metrics` has them in Prometheus's text format,
or in OpenMetrics if the scraper prefers it. Names are vLLM's with `warmstart:` for `vllm:` where vLLM has the metric,
so that its dashboards need another prefix only. Histograms have `_bucket`, `_sum` and `_count`; units are seconds and
bytes. Those of a model exist from its first load on. [Monitoring](monitoring.md) has the dashboard and the alerts.

| metric | kind | labels | meaning |
|---|---|---|---|
"""
_VALUE_LABELS = {"le", "quantile"}


def page() -> str:
    """Return the page."""
    metrics = Metrics(lambda: 0.0)
    labels = {
        collector._name: collector._labelnames
        for collector in metrics._registry._collector_to_names
        if hasattr(collector, "_labelnames")
    }
    metrics.model("m")
    status = [ModelStatus(id=name, source="hub", state="ready", default=True, created=0) for name in ("m", "m:adapter")]
    service = ServiceStats(status, True, Memory(), CacheStats(store="memory"))
    text = metrics.render(more=service_families(service))[0].decode()
    families = {family.name: family for family in parser.text_string_to_metric_families(text)}
    rows = []
    for name, family in sorted(families.items()):
        if not name.startswith("warmstart:") or name.endswith("_created"):
            continue
        names = labels.get(name.removesuffix("_total")) or labels.get(name) or _labels(family)
        shown = f"{name}_total" if family.type == "counter" else name
        rows.append(
            f"| `{shown}` | {family.type} | {', '.join(f'`{label}`' for label in names)} | {family.documentation} |\n"
        )
    return _HEAD + "".join(rows)


def _labels(family: Metric) -> list[str]:
    return sorted({label for sample in family.samples for label in sample.labels} - _VALUE_LABELS)
