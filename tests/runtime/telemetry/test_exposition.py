"""Metric families of what is read when it is shown."""

from __future__ import annotations

from dataclasses import fields

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from runtime.status import CacheStats, Memory, ModelState, ModelStatus
from runtime.telemetry.exposition import ServiceStats, prefers_openmetrics, service_families
from runtime.telemetry.metrics import Metrics
from runtime.types import Job, SamplingParams


def status(name: str, state: ModelState, **more: object) -> ModelStatus:
    return ModelStatus(id=name, source="folder", state=state, created=1, **({"default": False} | more))  # type: ignore[arg-type]


SERVICE = ServiceStats(
    models=[
        status("a", "ready", default=True, memory_bytes=100, running=2, loads=3, unloads=2, evictions=1),
        status("b", "failed", reserved_bytes=50, load_failures=4),
        status("c", "draining", memory_bytes=7),
    ],
    ready=True,
    memory=Memory(process_bytes=10, limit_bytes=1000, budget_bytes=500),
    cache=CacheStats(entries=1, bytes=2, limit_bytes=3, hits=4, shared=5, misses=6, bypassed=7, evictions=8, expired=9,
                     errors=10, saved_tokens=11, saved_seconds=12.5),
)  # fmt: skip


def samples(service: ServiceStats = SERVICE) -> dict[tuple[str, ...], float]:
    """(name, label values...) to value, as shown."""
    text = Metrics().render("", service_families(service))[0].decode()
    return {
        (sample.name.removeprefix("warmstart:"), *sample.labels.values()): sample.value
        for family in read_text(text)
        for sample in family.samples
        if sample.name.startswith("warmstart:")
    }


def test_each_model_is_in_one_state() -> None:
    """Of a model's states one is 1 and the others are 0, so that alerts can be set on any."""
    shown = samples()
    states = {key[1:]: value for key, value in shown.items() if key[0] == "model_state"}
    assert len(states) == 3 * 5
    assert {key for key, value in states.items() if value == 1} == {("a", "ready"), ("b", "failed"), ("c", "draining")}


def test_memory_is_what_is_held_now() -> None:
    """Each model's, whatever it may come to hold, and the process's."""
    shown = samples()
    held = {name: shown["model_memory_bytes", name] for name in "abc"}
    assert held == {"a": 100, "b": 0, "c": 7}
    assert shown["memory_process_bytes",] == 10
    assert shown["memory_limit_bytes",] == 1000
    assert shown["memory_budget_bytes",] == 500


def test_models_counts() -> None:
    """Loads, failed loads, unloads, evictions, requests that hold it, and which is the default."""
    shown = samples()
    names = ("loads_total", "load_failures_total", "unloads_total", "evictions_total", "leases", "default")
    assert [shown[f"model_{name}", "a"] for name in names] == [3, 0, 2, 1, 2, 1]
    assert [shown[f"model_{name}", "b"] for name in names] == [0, 4, 0, 0, 0, 0]
    assert shown["ready",] == 1


def test_all_of_the_cache_is_shown() -> None:
    """Every number of the cache's statistics but its fixed time to live has a metric."""
    shown = samples()
    for field in fields(CacheStats):
        if field.name in ("store", "ttl_seconds"):
            continue
        gauge = field.name in ("entries", "bytes", "limit_bytes")
        name = f"response_cache_{field.name}" + ("" if gauge else "_total")
        assert shown[name,] == getattr(SERVICE.cache, field.name)


def test_it_is_valid_openmetrics() -> None:
    """Together with what is counted, and with names that a label must escape."""
    metrics = Metrics(lambda: 0.25)
    metrics.model("a").request([Job((1,), SamplingParams(1))]).token(0, 1.0, 0.5, "stop")
    odd = ServiceStats([status('we"ird\\name\n', "ready")], False, Memory(), CacheStats())
    body, _ = metrics.render("application/openmetrics-text", service_families(odd))
    families = list(read_openmetrics(body.decode()))
    assert len({family.name for family in families}) == len(families)
    (gaps,) = [family for family in families if family.name == "warmstart:inter_token_latency_seconds"]
    assert gaps.type == "histogram"
    names = {sample.labels.get("model_name") for family in families for sample in family.samples}
    assert 'we"ird\\name\n' in names


_SCRAPER = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.4,*/*;q=0.1"


@pytest.mark.parametrize(
    ("accept", "openmetrics"),
    [
        ("", False),
        ("*/*", False),
        ("text/*, application/*", False),
        ("application/openmetrics-text", True),
        ("application/openmetrics-text, */*", True),
        ("application/openmetrics-text, text/plain", True),
        (_SCRAPER, True),
        ("application/openmetrics-text;q=0.5,text/plain;q=1", False),
        ("application/openmetrics-text ; Q=0.5 , text/plain ; q=0.25", True),
        ("application/openmetrics-text;version=1.0.0;q=0.2,application/openmetrics-text;q=0.6,text/plain;q=0.5", True),
        ("application/openmetrics-text;q=0, */*", False),
        ("application/openmetrics-text;q=0", False),
        ("application/*;q=0.9, text/plain;q=0.1", True),
        ("text/plain;q=0, */*", True),
        ("application/openmetrics-text;q=nan", False),
        ("application/openmetrics-text;q=2, text/plain;q=0.1", False),
        ("application/openmetrics-textual", False),
        (";;,=,;q", False),
    ],
)
def test_what_a_scraper_prefers(accept: str, openmetrics: bool) -> None:
    """Weights decide, by the most specific range; RFC 9110 section 12.5.1."""
    assert prefers_openmetrics(accept) == openmetrics
