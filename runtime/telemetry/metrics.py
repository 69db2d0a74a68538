"""What is measured: one registry per process, made where everything is put together, shown at ``/metrics``.

Names end as vLLM's do (``num_requests_running``, ``time_to_first_token_seconds``, ...), behind ``warmstart:``, so that
its dashboards need one prefix changed. What is read when it is shown, and not counted, is in ``runtime.telemetry.exposition``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric

from runtime.telemetry.event_metrics import EventMetrics
from runtime.telemetry.exposition import OPENMETRICS, figure_families, prefers_openmetrics
from runtime.telemetry.model_metrics import ModelMetrics
from runtime.types import ModelFigures

# What the encoder understands, whatever was asked for in detail. Without the last part it writes _ for : in names.
_OPENMETRICS = f"{OPENMETRICS}; version=1.0.0; escaping=allow-utf-8"
_LABEL = ("model_name",)

_FIRST_TOKEN = (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 0.75, 1, 2.5, 5, 10, 30, 60, 120)
_WHOLE = (0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 60, 120, 300, 600)


class Metrics:
    """All metrics of the process. Thread-safe.

    Args:
        clock: monotonic time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._registry = CollectorRegistry()
        self._models: dict[str, ModelMetrics] = {}
        self._lock = threading.Lock()
        self._registry.register(self)
        process = ProcessCollector(registry=self._registry)
        self._started = _process_start(process) or time.time()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"warmstart:{name}", text, (*_LABEL, *labels), registry=self._registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"warmstart:{name}", text, _LABEL, registry=self._registry)

        def histogram(name: str, text: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(f"warmstart:{name}", text, _LABEL, buckets=buckets, registry=self._registry)

        self.load = gauge("model_load_seconds", "What loading the model took.")
        self.cold_start = gauge("cold_start_seconds", "From the process's start until the model was ready.")
        self.drafted = counter("spec_decode_num_draft_tokens", "Tokens guessed ahead.")
        self.accepted = counter("spec_decode_num_accepted_tokens", "Tokens guessed ahead that were right.")
        self.preemptions = counter("num_preemptions", "Times that queued work gave way in the middle.")
        self.success = counter("request_success", "Sequences that ended by themselves.", "finished_reason")
        self.failure = counter("request_failure", "Requests that were admitted and ended with an error.", "code")
        self.rejected = counter("request_rejected", "Requests that were not admitted.", "reason")
        self.restarts = counter("engine_restarts", "Engine threads that died and were replaced.")
        text = "Requests that were answered with an error."
        self.refusals = Counter("warmstart:edge_refusals", text, ("code",), registry=self._registry)
        text = "Times that what clients used of their rate limits could not be looked up."
        self.limits_away = Counter("warmstart:rate_limit_store_errors", text, registry=self._registry)
        text = "Clients whose use this process remembers."
        self.limited_clients = Gauge("warmstart:rate_limit_clients", text, registry=self._registry)
        text = "Records that the audit log could not take, and failures to bring it to the disk."
        self.audit_errors = Counter("warmstart:audit_errors", text, registry=self._registry)
        self.events = EventMetrics(self._registry)
        self.first_token = histogram("time_to_first_token_seconds", "Arrival to first token.", _FIRST_TOKEN)
        self.whole = histogram("e2e_request_latency_seconds", "Arrival to last token.", _WHOLE)
        self.queue = histogram("request_queue_time_seconds", "Arrival to the first step.", _FIRST_TOKEN)
        self.prefill = histogram("request_prefill_time_seconds", "First step to first token.", _FIRST_TOKEN)
        self.decode = histogram("request_decode_time_seconds", "First token to last.", _WHOLE)

    def model(self, name: str) -> ModelMetrics:
        """The metrics of one model; the same object for the same name."""
        with self._lock:
            if name not in self._models:
                self._models[name] = ModelMetrics(self, name, self._started, self._clock)
            return self._models[name]

    def figures(self, name: str) -> ModelFigures:
        """What a model does and has done; zeros of one that was never loaded, whose name is not kept either."""
        model = self._models.get(name)
        return ModelFigures() if model is None else model.figures.read()

    def collect(self) -> Iterable[Metric]:
        """For the registry: the families that are counted by hand, see ``runtime.telemetry.rolling_stats``."""
        with self._lock:
            return figure_families({name: model.figures for name, model in self._models.items()})

    def render(self, accept: str = "", more: Iterable[Metric] = ()) -> tuple[bytes, str]:
        """All metrics as text.

        Args:
            accept: the ``Accept`` header; OpenMetrics 1.0 if it prefers that, else Prometheus' text format 0.0.4.
            more: families to show with them, see ``runtime.telemetry.exposition``.

        Returns:
            The text, and its content type.
        """
        encode, content_type = choose_encoder(_OPENMETRICS if prefers_openmetrics(accept) else "")
        return encode(_Families([*self._registry.collect(), *more])), content_type


class _Families:
    """What an encoder takes for a registry."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def _process_start(process: ProcessCollector) -> float | None:
    """Wall clock of the process's start, where the system tells."""
    for family in process.collect():
        if family.name == "process_start_time_seconds" and family.samples:
            return float(family.samples[0].value)
    return None
