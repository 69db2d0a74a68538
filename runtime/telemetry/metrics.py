"""All Prometheus metrics of the process, in one registry, rendered for ``/metrics``.

Names end as vLLM's do (``num_requests_running``, ``time_to_first_token_seconds``, ...), after the prefix
``warmstart:``, so that vLLM's dashboards need only another prefix. ``runtime.telemetry.exposition`` builds the metrics
that are read at scrape time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric

from runtime.status import EngineStats
from runtime.telemetry.batch_metrics import BatchMetrics
from runtime.telemetry.event_metrics import EventMetrics
from runtime.telemetry.exposition import OPENMETRICS, prefers_openmetrics, stats_families
from runtime.telemetry.model_collectors import Collectors
from runtime.telemetry.model_metrics import ModelMetrics

# The version that the encoder supports, whichever was requested. Without the last part it writes _ for : in names.
_OPENMETRICS = f"{OPENMETRICS}; version=1.0.0; escaping=allow-utf-8"


class Metrics:
    """All metrics of the process. Thread-safe.

    Args:
        clock: returns monotonic time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._registry = CollectorRegistry()
        self._models: dict[str, ModelMetrics] = {}
        self._lock = threading.Lock()
        self._registry.register(self)
        process = ProcessCollector(registry=self._registry)
        self._started = _process_start(process) or time.time()

        self._collectors = Collectors.register(self._registry)
        text = "Requests that were answered with an error."
        self.refusals = Counter("warmstart:edge_refusals", text, ("code",), registry=self._registry)
        text = "Failures of the rate limits' store."
        self.limits_unavailable = Counter("warmstart:rate_limit_store_errors", text, registry=self._registry)
        text = "Clients whose used quotas this process stores."
        self.limited_clients = Gauge("warmstart:rate_limit_clients", text, registry=self._registry)
        text = "Audit records that could not be written, and failures to sync the audit log to disk."
        self.audit_errors = Counter("warmstart:audit_errors", text, registry=self._registry)
        self.events = EventMetrics(self._registry)
        self.batches = BatchMetrics(self._registry)

    def model(self, name: str) -> ModelMetrics:
        """Return the metrics of one model; the same object for the same name."""
        with self._lock:
            if name not in self._models:
                self._models[name] = ModelMetrics(self._collectors, name, self._started, self._clock)
            return self._models[name]

    def model_stats(self, name: str) -> EngineStats:
        """Return a model's statistics; all zero for a model that was never loaded, for which nothing is created."""
        model = self._models.get(name)
        return EngineStats() if model is None else model.stats.read()

    def collect(self) -> Iterable[Metric]:
        """Return the families of ``runtime.telemetry.rolling_stats``; the registry calls this at each scrape."""
        with self._lock:
            return stats_families({name: model.stats for name, model in self._models.items()})

    def render(self, accept: str = "", more: Iterable[Metric] = ()) -> tuple[bytes, str]:
        """Return all metrics as text.

        Args:
            accept: the ``Accept`` header; OpenMetrics 1.0 if it prefers that, else Prometheus's text format 0.0.4.
            more: further families to include, see ``runtime.telemetry.exposition``.

        Returns:
            The text and its content type.
        """
        encode, content_type = choose_encoder(_OPENMETRICS if prefers_openmetrics(accept) else "")
        return encode(_Families([*self._registry.collect(), *more])), content_type


class _Families:
    """A list of families with the part of a registry's interface that encoders use."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def _process_start(process: ProcessCollector) -> float | None:
    """Return the process's start as Unix time, where the operating system reports it."""
    for family in process.collect():
        if family.name == "process_start_time_seconds" and family.samples:
            return float(family.samples[0].value)
    return None
