"""Prometheus metrics of event processing: outcomes, retries, dead letters, lag and broker errors."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SOURCE = "source"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class EventMetrics:
    """The event metrics of one process. Labels are bounded: the source is the worker's name, operations are known ones.

    Args:
        registry: the registry in which the metrics are registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"warmstart:{name}", text, (_SOURCE, *labels), registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"warmstart:{name}", text, (_SOURCE,), registry=registry)

        text = "Deliveries by outcome: acked, repeated, retried, rejected, unsettled."
        self.events = counter("events", text, "operation", "outcome")
        self.retries = counter("events_retries", "Deliveries returned for a retry, by error code.", "code")
        self.dead = counter("events_dead_letters", "Messages that became dead letters, by error code.", "code")
        self.broker_errors = counter("events_broker_errors", "Broker errors.")
        self.in_flight = gauge("events_in_flight", "Deliveries being processed.")
        self.lag = gauge("events_lag", "Messages that no worker has received; missing if the broker does not say.")
        text = "Time from a delivery to its settlement."
        labels = (_SOURCE, "operation")
        self.seconds = Histogram("warmstart:events_seconds", text, labels, buckets=_SECONDS, registry=registry)
