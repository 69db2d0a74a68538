"""What is measured: one registry per process, made where everything is put together, shown at ``/metrics``.

Names end as vLLM's do (``num_requests_running``, ``time_to_first_token_seconds``, ...), behind ``warmstart:``, so that
its dashboards need one prefix changed. Times are monotonic seconds.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import choose_encoder

from runtime.types import FinishReason

# What the encoder understands, whatever was asked for in detail. Without the last part it writes _ for : in names.
_OPENMETRICS = "application/openmetrics-text; version=1.0.0; escaping=allow-utf-8"
_LABEL = ("model_name",)

_BETWEEN_TOKENS = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2.5)
_FIRST_TOKEN = (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 0.75, 1, 2.5, 5, 10, 30, 60, 120)
_WHOLE = (0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 60, 120, 300, 600)


class Metrics:
    """All metrics of the process. Thread-safe."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._models: dict[str, ModelMetrics] = {}
        self._lock = threading.Lock()
        process = ProcessCollector(registry=self._registry)
        self._started = _process_start(process) or time.time()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"warmstart:{name}", text, (*_LABEL, *labels), registry=self._registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"warmstart:{name}", text, _LABEL, registry=self._registry)

        def histogram(name: str, text: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(f"warmstart:{name}", text, _LABEL, buckets=buckets, registry=self._registry)

        self.running = gauge("num_requests_running", "Requests in the batch.")
        self.waiting = gauge("num_requests_waiting", "Requests that wait for a place in the batch.")
        self.cache_usage = gauge("kv_cache_usage_perc", "Share of the KV cache that running requests hold (0 to 1).")
        self.load = gauge("model_load_seconds", "What loading the model took.")
        self.cold_start = gauge("cold_start_seconds", "From the process's start until the model was ready.")
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens of requests that gave a first token.")
        self.generation_tokens = counter("generation_tokens", "Tokens handed out.")
        self.cache_queries = counter("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.")
        self.cache_hits = counter("prefix_cache_hits", "Prompt tokens found in the prefix cache.")
        self.drafted = counter("spec_decode_num_draft_tokens", "Tokens guessed ahead.")
        self.accepted = counter("spec_decode_num_accepted_tokens", "Tokens guessed ahead that were right.")
        self.success = counter("request_success", "Sequences that ended by themselves.", "finished_reason")
        self.failure = counter("request_failure", "Requests that were admitted and ended with an error.", "code")
        self.rejected = counter("request_rejected", "Requests that were not admitted.", "reason")
        self.cancelled = counter("request_cancelled", "Requests whose caller went away.")
        self.restarts = counter("engine_restarts", "Engine threads that died and were replaced.")
        self.first_token = histogram("time_to_first_token_seconds", "Arrival to first token.", _FIRST_TOKEN)
        self.between_tokens = histogram("inter_token_latency_seconds", "One token to the next.", _BETWEEN_TOKENS)
        self.whole = histogram("e2e_request_latency_seconds", "Arrival to last token.", _WHOLE)
        self.queue = histogram("request_queue_time_seconds", "Arrival to the first step.", _FIRST_TOKEN)
        self.prefill = histogram("request_prefill_time_seconds", "First step to first token.", _FIRST_TOKEN)
        self.decode = histogram("request_decode_time_seconds", "First token to last.", _WHOLE)

    def model(self, name: str) -> ModelMetrics:
        """The metrics of one model; the same object for the same name."""
        with self._lock:
            if name not in self._models:
                self._models[name] = ModelMetrics(self, name, self._started)
            return self._models[name]

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """All metrics as text.

        Args:
            accept: the ``Accept`` header; OpenMetrics 1.0 if it names that, else Prometheus' text format 0.0.4.

        Returns:
            The text, and its content type.
        """
        encode, content_type = choose_encoder(_OPENMETRICS if _OPENMETRICS.partition(";")[0] in accept.lower() else "")
        return encode(self._registry), content_type


class ModelMetrics:
    """The metrics of one model, with its label bound once: looking a label up costs more than counting.

    Args:
        metrics: of the process.
        name: of the model.
        started: wall clock of the process's start.
    """

    def __init__(self, metrics: Metrics, name: str, started: float) -> None:
        self._started = started
        self._name = name
        self.running = metrics.running.labels(name)
        self.waiting = metrics.waiting.labels(name)
        self.cache_usage = metrics.cache_usage.labels(name)
        self.load = metrics.load.labels(name)
        self.cold_start = metrics.cold_start.labels(name)
        self.prompt_tokens = metrics.prompt_tokens.labels(name)
        self.generation_tokens = metrics.generation_tokens.labels(name)
        self.cache_queries = metrics.cache_queries.labels(name)
        self.cache_hits = metrics.cache_hits.labels(name)
        self.drafted = metrics.drafted.labels(name)
        self.accepted = metrics.accepted.labels(name)
        self.success: dict[FinishReason, Counter] = {
            "stop": metrics.success.labels(name, "stop"),
            "length": metrics.success.labels(name, "length"),
        }
        self.cancelled = metrics.cancelled.labels(name)
        self.restarts = metrics.restarts.labels(name)
        self.first_token = metrics.first_token.labels(name)
        self.between_tokens = metrics.between_tokens.labels(name)
        self.whole = metrics.whole.labels(name)
        self.queue = metrics.queue.labels(name)
        self.prefill = metrics.prefill.labels(name)
        self.decode = metrics.decode.labels(name)
        self._failure = metrics.failure
        self._rejected = metrics.rejected

    def ready(self, load_seconds: float) -> None:
        """The model is loaded and warm."""
        self.load.set(load_seconds)
        self.cold_start.set(max(0.0, time.time() - self._started))

    def rejected(self, reason: str) -> None:
        """A request was refused; ``reason`` is the error's code."""
        self._rejected.labels(self._name, reason).inc()

    def failed(self, code: str) -> None:
        """An admitted request ended with an error of that code."""
        self._failure.labels(self._name, code).inc()

    def request(self, sequences: int) -> RequestRecord:
        """A request of so many sequences came just now. If it is not admitted, its record is of no effect."""
        return RequestRecord(self, sequences)


class RequestRecord:
    """The course of one request, token by token. Whichever engine runs it, its stream tells it here.

    Args:
        metrics: of its model.
        sequences: how many it has.
    """

    __slots__ = ("_arrived", "_ended", "_first", "_last", "_left", "_metrics", "_started")

    def __init__(self, metrics: ModelMetrics, sequences: int) -> None:
        self._metrics = metrics
        self._arrived = time.monotonic()
        self._started = self._first = 0.0
        self._last = [0.0] * sequences  # when each sequence got its last token
        self._left = sequences
        self._ended = False

    def prompt(self, tokens: int, cached: int) -> None:
        """A prompt gave its first token; so many of its tokens, looked up all, were in the prefix cache."""
        self._metrics.prompt_tokens.inc(tokens)
        self._metrics.cache_queries.inc(tokens)
        self._metrics.cache_hits.inc(cached)

    def token(self, sequence: int, now: float, started: float, reason: FinishReason | None) -> None:
        """A sequence got a token.

        Args:
            sequence: its number within the request.
            now: when the token was there.
            started: when the request's first step began.
            reason: set on the sequence's last token.
        """
        metrics, last = self._metrics, self._last[sequence]
        metrics.generation_tokens.inc()
        if last:
            metrics.between_tokens.observe(now - last)
        elif not self._first:
            self._started, self._first = started, now
            metrics.first_token.observe(now - self._arrived)
        self._last[sequence] = now
        if reason is not None:
            metrics.success[reason].inc()
            self._left -= 1
            if not self._left:
                self._finish(now)

    def failed(self, code: str) -> None:
        """It ended with an error."""
        self._ended = True
        self._metrics.failed(code)

    def closed(self) -> None:
        """Nobody reads it any more: if it has not ended, its caller went away."""
        if not self._ended:
            self._metrics.cancelled.inc()

    def _finish(self, now: float) -> None:
        self._ended = True
        metrics = self._metrics
        metrics.whole.observe(now - self._arrived)
        metrics.queue.observe(self._started - self._arrived)
        metrics.prefill.observe(self._first - self._started)
        metrics.decode.observe(now - self._first)


def _process_start(process: ProcessCollector) -> float | None:
    """Wall clock of the process's start, where the system tells."""
    for family in process.collect():
        if family.name == "process_start_time_seconds" and family.samples:
            return float(family.samples[0].value)
    return None
