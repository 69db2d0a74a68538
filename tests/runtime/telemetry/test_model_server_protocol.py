"""The metrics that endpoint pickers read, by the text of their protocol (Gateway API Inference Extension, 003)."""

from __future__ import annotations

import time

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families as read_text

from runtime.status import CacheStats, Memory, ModelState, ModelStatus
from runtime.telemetry.exposition import ServiceStats, service_families
from runtime.telemetry.metrics import Metrics

# What the protocol calls them, and the names that docs/growing.md tells an endpoint picker.
QUEUED, CACHE, ADAPTERS = "num_requests_waiting", "kv_cache_usage_perc", "lora_requests_info"


def _models(**states: ModelState) -> list[ModelStatus]:
    return [
        ModelStatus(id=name.replace("__", ":"), source="folder", state=state, default=False, created=1)
        for name, state in states.items()
    ]


def _families(models: list[ModelStatus]) -> dict[str, Metric]:
    service = ServiceStats(models, True, Memory(1, 1, 1), CacheStats())
    metrics = Metrics()
    metrics.model("a")
    body, _ = metrics.render("text/plain", service_families(service))
    return {family.name: family for family in read_text(body.decode())}


def test_queue_and_cache() -> None:
    """The requests that wait and the used part of the KV cache are gauges, one value for each model."""
    families = _families(_models(a="ready"))
    for name in (QUEUED, CACHE):
        family = families[f"warmstart:{name}"]
        assert (family.type, [sample.labels for sample in family.samples]) == ("gauge", [{"model_name": "a"}])


def test_adapters() -> None:
    """A gauge has the time, and as labels the adapters that are loaded, those that are loading, and how many there are.

    They have the names that requests use.
    """
    family = _families(_models(a="ready", a__x="ready", a__y="loading", a__z="unloaded", a__w="ready"))[
        f"warmstart:{ADAPTERS}"
    ]
    (sample,) = family.samples
    assert family.type == "gauge"
    assert sample.labels == {"max_lora": "4", "running_lora_adapters": "a:x,a:w", "waiting_lora_adapters": "a:y"}
    assert 0 <= time.time() - sample.value < 60


def test_no_adapters() -> None:
    """A service without adapters has no such series."""
    assert f"warmstart:{ADAPTERS}" not in _families(_models(a="ready"))
