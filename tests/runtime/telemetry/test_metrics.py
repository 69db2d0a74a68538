"""What is measured, and how it is shown."""

from __future__ import annotations

import threading

import pytest
from prometheus_client import REGISTRY
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from runtime.status import EngineStats, Percentiles
from runtime.telemetry import metrics as metrics_module
from runtime.telemetry.metrics import Metrics
from runtime.types import Job, SamplingParams

NAMES = (
    "num_requests_running",
    "num_requests_waiting",
    "kv_cache_usage_perc",
    "prompt_tokens_total",
    "generation_tokens_total",
    "prefix_cache_queries_total",
    "prefix_cache_hits_total",
    "model_load_seconds",
    "cold_start_seconds",
    "engine_restarts_total",
    "request_cancelled_total",
    "spec_decode_num_draft_tokens_total",
    "spec_decode_num_accepted_tokens_total",
)
HISTOGRAMS = (
    "time_to_first_token",
    "inter_token_latency",
    "e2e_request_latency",
    "request_queue_time",
    "request_prefill_time",
    "request_decode_time",
)


def job(n: int) -> Job:
    """A request's job of so many sequences."""
    return Job((1,), SamplingParams(max_new_tokens=9, n=n))


def value(metrics: Metrics, name: str, model: str = "m", **labels: str) -> float | None:
    """A sample as it is shown; None if it is not."""
    families = read_text(metrics.render()[0].decode())
    wanted = (f"warmstart:{name}", {"model_name": model, **labels})
    return next((s.value for family in families for s in family.samples if (s.name, s.labels) == wanted), None)


def test_nothing_is_global() -> None:
    """Two collections know nothing of each other, and the library's own registry knows of neither."""
    one, two = Metrics(), Metrics()
    one.model("m").restarts.inc()
    two.model("m")
    assert (value(one, "engine_restarts_total"), value(two, "engine_restarts_total")) == (1, 0)
    assert not [family.name for family in REGISTRY.collect() if "warmstart" in family.name]


def test_everything_is_there_from_the_start() -> None:
    """A model's metrics are shown as zeros before its first request, so that rates can be taken of them."""
    metrics = Metrics()
    assert value(metrics, "engine_restarts_total") is None
    metrics.model("m")
    for name in [*NAMES, *(f"{name}_seconds_count" for name in HISTOGRAMS)]:
        assert value(metrics, name) == 0, name
    for reason in ("stop", "length"):
        assert value(metrics, "request_success_total", finished_reason=reason) == 0


def test_each_model_has_its_own() -> None:
    """The same name gives the same metrics, another name others."""
    metrics = Metrics()
    assert metrics.model("a") is metrics.model("a")
    metrics.model("a").rejected("queue_full")
    metrics.model("b")
    assert value(metrics, "request_rejected_total", "a", reason="queue_full") == 1
    assert value(metrics, "request_rejected_total", "b", reason="queue_full") is None


@pytest.mark.parametrize(
    "accept",
    [
        "application/openmetrics-text",
        "text/plain;q=0.5, Application/OpenMetrics-Text;version=0.0.1;q=0.7",
        "application/openmetrics-text; version=x.y; escaping=underscores",
    ],
)
def test_openmetrics_has_the_same_names_as_plain_text(accept: str) -> None:
    """Whatever version is asked for, the answer is OpenMetrics 1.0 with every sample that the text format has."""
    metrics = Metrics()
    metrics.model("m").ready(1)
    body, content_type = metrics.render(accept)
    assert content_type.startswith("application/openmetrics-text; version=1.0.0; charset=utf-8")
    shown = {sample.name for family in read_openmetrics(body.decode()) for sample in family.samples}
    plain = {sample.name for family in read_text(metrics.render()[0].decode()) for sample in family.samples}
    assert shown == plain
    assert "warmstart:time_to_first_token_seconds_bucket" in shown


@pytest.mark.parametrize("accept", ["", "*/*", "text/html", "text/plain; version=1.0.0"])
def test_plain_text_otherwise(accept: str) -> None:
    """What any Prometheus reads."""
    body, content_type = Metrics().render(accept)
    assert content_type == "text/plain; version=0.0.4; charset=utf-8"
    assert b"process_resident_memory_bytes" in body


def test_the_course_of_a_request() -> None:
    """Each interval is measured from the right moment to the right moment, sequence by sequence."""
    metrics = Metrics(lambda: 100.0)
    record = metrics.model("m").request([job(2)])
    record.prompt(30, 16)
    record.token(0, 103.0, 102.0, None)
    record.token(1, 103.5, 102.0, None)
    record.token(0, 104.0, 102.0, None)
    record.token(0, 106.0, 102.0, "length")
    assert value(metrics, "e2e_request_latency_seconds_count") == 0
    record.token(1, 107.0, 102.0, "stop")
    record.closed(102.0)
    sums = {name: value(metrics, f"{name}_seconds_sum") for name in HISTOGRAMS}
    assert sums == {
        "time_to_first_token": 3.0,
        "inter_token_latency": 1 + 2 + 3.5,
        "e2e_request_latency": 7.0,
        "request_queue_time": 2.0,
        "request_prefill_time": 1.0,
        "request_decode_time": 4.0,
    }
    counts = {name: value(metrics, f"{name}_seconds_count") for name in HISTOGRAMS}
    assert counts == dict.fromkeys(HISTOGRAMS, 1) | {"inter_token_latency": 3}
    assert value(metrics, "generation_tokens_total") == 5
    assert value(metrics, "prompt_tokens_total") == 30 == value(metrics, "prefix_cache_queries_total")
    assert value(metrics, "prefix_cache_hits_total") == 16
    assert value(metrics, "request_success_total", finished_reason="stop") == 1
    assert value(metrics, "request_success_total", finished_reason="length") == 1
    assert value(metrics, "request_cancelled_total") == 0


def test_a_request_ends_in_one_way_only() -> None:
    """One that failed was not cancelled; one whose caller went away is neither a success nor a failure."""
    metrics = Metrics()
    failed, left = (metrics.model("m").request([job(1)]) for _ in range(2))
    failed.token(0, 1.0, 0.5, None)
    failed.failed("deadline_exceeded")
    failed.closed(0.5)
    assert value(metrics, "request_failure_total", code="deadline_exceeded") == 1
    assert value(metrics, "request_cancelled_total") == 0
    left.token(0, 1.0, 0.5, None)
    left.closed(0.5)
    assert value(metrics, "request_cancelled_total") == 1
    assert value(metrics, "e2e_request_latency_seconds_count") == 0


@pytest.mark.parametrize(("started", "expected"), [(900.0, 100.0), (None, 5.0), (2000.0, 0.0)])
def test_cold_start(monkeypatch: pytest.MonkeyPatch, started: float | None, expected: float) -> None:
    """It runs from the process's start, or where the system does not tell that, from when measuring began."""
    monkeypatch.setattr(metrics_module, "_process_start", lambda process: started)
    monkeypatch.setattr(metrics_module.time, "time", lambda: 995.0)
    metrics = Metrics()
    monkeypatch.setattr(metrics_module.time, "time", lambda: 1000.0)
    metrics.model("m").ready(1.5)
    assert value(metrics, "cold_start_seconds") == expected
    assert value(metrics, "model_load_seconds") == 1.5


def test_a_name_that_was_asked_for_is_not_kept() -> None:
    """Figures of an unknown model are zeros, and leave no label behind: callers cannot make the metrics grow."""
    metrics = Metrics()
    assert metrics.model_stats("nobody") == EngineStats()
    assert b"nobody" not in metrics.render()[0]


def test_stats_and_metrics_agree() -> None:
    """One request is told once and shown in both."""
    metrics = Metrics(lambda: 1.0)
    record = metrics.model("m").request([job(2)])
    record.prompt(9, 4)
    for sequence, now in ((0, 2.0), (1, 2.0), (0, 2.5), (1, 3.0)):
        record.token(sequence, now, 1.5, "length" if now > 2 else None)
    record.closed(1.5)
    stats = metrics.model_stats("m")
    assert (stats.finished, stats.cancelled, stats.generated_tokens) == (1, 0, 4)
    assert (stats.prompt_tokens, stats.cached_tokens) == (9, 4)
    assert stats.time_to_first_token == Percentiles(1.0, 1.0)
    assert stats.inter_token_latency == Percentiles(0.75, 0.75)  # of 0.5 s and 1 s
    assert value(metrics, "generation_tokens_total") == 4
    assert value(metrics, "inter_token_latency_seconds_sum") == 1.5


def test_threads_count_together() -> None:
    """Nothing is lost when several threads count at once."""
    metrics = Metrics()
    model = metrics.model("m")

    def work() -> None:
        record = model.request([job(1)])
        for i in range(2000):
            record.token(0, i + 1.0, 0.5, None)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert value(metrics, "generation_tokens_total") == 8000
    assert value(metrics, "inter_token_latency_seconds_count") == 7996


def test_events() -> None:
    """Each process counts its own, under the name of where they come from."""
    metrics = Metrics()
    metrics.events.events.labels("nats:s", "generate", "acked").inc()
    shown = 'warmstart:events_total{operation="generate",outcome="acked",source="nats:s"} 1.0'
    assert shown in metrics.render()[0].decode()
    assert shown not in Metrics().render()[0].decode()


def test_what_requests_ask_for_and_get() -> None:
    """vLLM's histograms of tokens, parameters and steps, and the KV cache's size."""
    metrics = Metrics(lambda: 100.0)
    model = metrics.model("m")
    record = model.request([job(2)])
    record.prompt(30, 16)
    for sequence, now in ((0, 103.0), (1, 103.0), (0, 105.0)):
        record.token(sequence, now, 102.0, None)
    record.token(0, 106.0, 102.0, "stop")
    record.token(1, 107.0, 102.0, "stop")
    model.step_tokens.observe(31)
    model.encoded("embed", 3)
    assert value(metrics, "encoded_inputs_total", task="embed") == 3
    model.kv_cache(32, 100, 2000, prefix_caching=True)
    names = ("prompt_tokens", "generation_tokens", "max_num_generation_tokens", "params_n", "params_max_tokens")
    assert [value(metrics, f"request_{name}_sum") for name in names] == [30, 5, 3, 2, 9]
    assert value(metrics, "request_inference_time_seconds_sum") == 5
    assert value(metrics, "request_time_per_output_token_seconds_sum") == pytest.approx((3 + 4) / 3)
    assert value(metrics, "iteration_tokens_total_sum") == 31
    labels = {"block_size": "32", "num_blocks": "100", "enable_prefix_caching": "true"}
    sizes = {"kv_cache_size_tokens": "3200", "kv_cache_max_concurrency": "1.60"}
    assert value(metrics, "cache_config_info", **labels, **sizes) == 1
    model.weights("int4", ("q4_1", "int8"), 1234)
    assert value(metrics, "model_weights_bytes", dtype="int4", weight_types="q4_1,int8") == 1234


def test_preemptions_of_a_request() -> None:
    """They are those of all its sequences."""
    metrics = Metrics(lambda: 100.0)
    record = metrics.model("m").request([job(2)])
    for sequence in (0, 1):
        record.preemptions += sequence
        record.token(sequence, 103.0, 102.0, "stop")
    assert value(metrics, "request_num_preemptions_count") == 1
    assert value(metrics, "request_num_preemptions_sum") == 1


def test_why_requests_wait() -> None:
    """Interactive requests wait for capacity, background ones are deferred."""
    metrics = Metrics(lambda: 100.0)
    metrics.model("m").stats.busy(1, 2, 3, 0.5)
    assert value(metrics, "num_requests_waiting_by_reason", reason="capacity") == 2
    assert value(metrics, "num_requests_waiting_by_reason", reason="deferred") == 3
