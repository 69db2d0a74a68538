"""Builds the metric families whose values are read at scrape time: tokens, models, memory and the response cache.

Names and units follow ``runtime.telemetry.metrics``. The functions keep no state: labels are those of the models
served now.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import get_args

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString

from runtime.status import CacheStats, Memory, ModelState, ModelStatus
from runtime.telemetry.rolling_stats import GAP_BOUNDS, RollingStats

OPENMETRICS = "application/openmetrics-text"
_TEXT = "text/plain"
_QVALUE = re.compile(r"0(\.\d{0,3})?|1(\.0{0,3})?", re.ASCII)
_LABEL = "model_name"
_STATES: tuple[ModelState, ...] = get_args(ModelState)


@dataclass(frozen=True, slots=True)
class ServiceStats:
    """A snapshot of the service's state.

    Args:
        models: the status of every served model.
        ready: whether the service answers requests.
        memory: the memory of the process and its container.
        cache: the response cache's size and counters.
    """

    models: list[ModelStatus]
    ready: bool
    memory: Memory
    cache: CacheStats


def prefers_openmetrics(accept: str) -> bool:
    """Return whether a scraper prefers OpenMetrics to Prometheus's text format (RFC 9110 section 12.5.1).

    The format with the higher weight wins. With equal weights it is OpenMetrics if the header names it, otherwise the
    text format, which every scraper reads; that is also the result if neither is acceptable. A media range with a
    malformed weight is ignored.

    Args:
        accept: the ``Accept`` header; versions in it are ignored.
    """
    weights: dict[str, float] = {}  # media range -> the highest weight it is given
    for element in accept.lower().split(","):
        media_range, *parameters = (part.strip() for part in element.split(";"))
        weight = next((value.strip() for name, _, value in (p.partition("=") for p in parameters) if name == "q"), "1")
        if _QVALUE.fullmatch(weight):
            weights[media_range] = max(float(weight), weights.get(media_range, 0.0))

    def weight_of(media_type: str) -> float:
        """Return a media type's weight from the most specific range that matches it."""
        ranges = (media_type, media_type.partition("/")[0] + "/*", "*/*")
        return next((weights[media_range] for media_range in ranges if media_range in weights), 0.0)

    openmetrics, text = weight_of(OPENMETRICS), weight_of(_TEXT)
    return openmetrics > text or (openmetrics == text > 0 and OPENMETRICS in weights)


def stats_families(stats: Mapping[str, RollingStats]) -> list[Metric]:
    """Build the families of the models' ``RollingStats``, given by model name."""

    def gauge(name: str, text: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"warmstart:{name}", text, labels=[_LABEL])

    def counter(name: str, text: str) -> CounterMetricFamily:
        return CounterMetricFamily(f"warmstart:{name}", text, labels=[_LABEL])

    families = (
        ("running", gauge("num_requests_running", "Requests in the batch.")),
        ("waiting", gauge("num_requests_waiting", "Interactive requests that wait for admission to the batch.")),
        ("queued", gauge("num_queued_requests_waiting", "Background requests (events) that wait for admission.")),
        ("kv_usage", gauge("kv_cache_usage_perc", "Fraction of the KV cache that running requests use (0 to 1).")),
        (
            "prompt_tokens",
            counter(
                "prompt_tokens", "Prompt tokens of requests that generated a first token, and tokens of encoded inputs."
            ),
        ),
        ("prompt_tokens", counter("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.")),
        ("cached_tokens", counter("prefix_cache_hits", "Prompt tokens found in the prefix cache.")),
        ("generated_tokens", counter("generation_tokens", "Generated tokens.")),
        ("cancelled", counter("request_cancelled", "Requests that their caller cancelled.")),
    )
    by_reason = GaugeMetricFamily(
        "warmstart:num_requests_waiting_by_reason",
        "Requests that wait: interactive ones for capacity; background ones are deferred while those come first.",
        labels=[_LABEL, "reason"],
    )
    gaps = HistogramMetricFamily(
        "warmstart:inter_token_latency_seconds", "Time between two tokens of a sequence.", labels=[_LABEL]
    )
    bounds = [*map(floatToGoString, GAP_BOUNDS), "+Inf"]
    for name, model in stats.items():
        now = model.read()
        for field, family in families:
            family.add_metric([name], getattr(now, field))
        by_reason.add_metric([name, "capacity"], now.waiting)
        by_reason.add_metric([name, "deferred"], now.queued)
        counts, seconds = model.gaps()
        gaps.add_metric([name], list(zip(bounds, accumulate(counts), strict=True)), seconds)
    return [*(family for _, family in families), by_reason, gaps]


def service_families(service: ServiceStats) -> Iterator[Metric]:
    """Yield the families of the models' states, of memory and of the response cache."""
    yield GaugeMetricFamily("warmstart:ready", "1 if the service answers requests, else 0.", float(service.ready))
    yield from _models(service.models)
    yield from _memory(service.memory)
    yield from _cache(service.cache)


def _models(models: list[ModelStatus]) -> Iterator[Metric]:
    state = GaugeMetricFamily("warmstart:model_state", "1 for the model's current state.", labels=[_LABEL, "state"])
    default = GaugeMetricFamily("warmstart:model_default", "1 for the default model, else 0.", labels=[_LABEL])
    memory = GaugeMetricFamily("warmstart:model_memory_bytes", "Memory that the model uses now.", labels=[_LABEL])
    leases = GaugeMetricFamily("warmstart:model_leases", "Requests that use the model now.", labels=[_LABEL])
    events = {
        "loads": CounterMetricFamily("warmstart:model_loads", "Loads that succeeded.", labels=[_LABEL]),
        "load_failures": CounterMetricFamily("warmstart:model_load_failures", "Loads that failed.", labels=[_LABEL]),
        "unloads": CounterMetricFamily("warmstart:model_unloads", "Unloads, including evictions.", labels=[_LABEL]),
        "evictions": CounterMetricFamily("warmstart:model_evictions", "Unloads for another model.", labels=[_LABEL]),
    }
    for model in models:
        for possible in _STATES:
            state.add_metric([model.id, possible], float(model.state == possible))
        default.add_metric([model.id], float(model.default))
        memory.add_metric([model.id], model.memory_bytes)
        leases.add_metric([model.id], model.running)
        for name, family in events.items():
            family.add_metric([model.id], getattr(model, name))
    yield from (state, default, memory, leases, *events.values())
    yield from _adapters(models)


def _adapters(models: list[ModelStatus]) -> Iterator[Metric]:
    """Yield what an endpoint picker reads to send a request where its adapter is loaded; nothing without adapters.

    Source: the model server protocol of the Gateway API Inference Extension (proposal 003), after vLLM's
    ``vllm:lora_requests_info``. Its value is the time of the report, so that a reader can find the latest series.
    """
    adapters = [model for model in models if ":" in model.id]
    if not adapters:
        return
    family = GaugeMetricFamily(
        "warmstart:lora_requests_info",
        "Adapters that are loaded and that are being loaded; the value is the Unix time of the report.",
        labels=["max_lora", "running_lora_adapters", "waiting_lora_adapters"],
    )
    loaded = ",".join(model.id for model in adapters if model.state == "ready")
    loading = ",".join(model.id for model in adapters if model.state == "loading")
    family.add_metric([str(len(adapters)), loaded, loading], time.time())
    yield family


def _memory(memory: Memory) -> Iterator[Metric]:
    yield GaugeMetricFamily("warmstart:memory_process_bytes", "Resident memory of the process.", memory.process_bytes)
    yield GaugeMetricFamily("warmstart:memory_limit_bytes", "Memory limit of the container.", memory.limit_bytes)
    yield GaugeMetricFamily("warmstart:memory_budget_bytes", "Memory budget of all models.", memory.budget_bytes)


def _cache(cache: CacheStats) -> Iterator[Metric]:
    for name, text, number in (
        ("hits", "Requests answered from the cache.", cache.hits),
        ("shared", "Requests that shared the computation of an identical request.", cache.shared),
        ("misses", "Cacheable requests that were computed.", cache.misses),
        ("bypassed", "Requests that bypassed the cache.", cache.bypassed),
        ("evictions", "Cached answers evicted to stay within the size limit.", cache.evictions),
        ("expired", "Cached answers that expired.", cache.expired),
        ("errors", "Failures of the cache's store.", cache.errors),
        ("saved_tokens", "Generated tokens that were answered from the cache.", cache.saved_tokens),
        ("saved_seconds", "Seconds that the original computation of those tokens took.", cache.saved_seconds),
    ):
        yield CounterMetricFamily(f"warmstart:response_cache_{name}", text, number)
    for name, text, number in (
        ("entries", "Cached answers.", cache.entries),
        ("bytes", "Size of the cached answers.", cache.bytes),
        ("limit_bytes", "Maximum size of the cached answers.", cache.limit_bytes),
    ):
        yield GaugeMetricFamily(f"warmstart:response_cache_{name}", text, number)
