"""Prometheus metrics of batches: their rows, and the states in which they ended."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge


class BatchMetrics:
    """The metrics of batches that this process runs.

    Args:
        registry: the registry in which the metrics are registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        text = "Rows of batches in progress that have no result yet."
        self.waiting = Gauge("warmstart:batch_rows_waiting", text, registry=registry)
        text = "Batches that have not ended."
        self.open = Gauge("warmstart:batches_open", text, registry=registry)
        text = "Rows of batches by result: completed, failed."
        self._rows = Counter("warmstart:batch_rows", text, ("result",), registry=registry)
        text = "Batches that ended, by state: completed, failed, expired, cancelled."
        self._ended = Counter("warmstart:batches", text, ("state",), registry=registry)
        for result in ("completed", "failed"):
            self._rows.labels(result)
        for state in ("completed", "failed", "expired", "cancelled"):
            self._ended.labels(state)

    def row_done(self, *, answered: bool) -> None:
        """Count a row that has got its result."""
        self._rows.labels("completed" if answered else "failed").inc()

    def ended(self, state: str) -> None:
        """Count a batch that has ended."""
        self._ended.labels(state).inc()
