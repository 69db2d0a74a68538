"""Reports each delivery as a log line, as metrics and as a record in the audit log."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from runtime.errors import AuditUnavailable
from runtime.events.audit import EventAudit
from runtime.events.envelope import Envelope
from runtime.events.outcome import Ack, Outcome, Policy, Reject, Retry
from runtime.telemetry.event_metrics import EventMetrics
from runtime.telemetry.logging import log_facts
from runtime.telemetry.request_scope import UsageCounter, request_facts, request_scope
from runtime.telemetry.tracing import continue_trace

_log = logging.getLogger("warmstart.events")

_OTHER_OPERATION = "other"  # metrics label of all unknown operations: senders could create any number of labels


class DeliveryReporter:
    """Reports the deliveries of one source.

    Args:
        source: the source's name in the log and the metrics.
        operations: the names of the operations, as labels of the metrics.
        metrics: the process's event metrics.
        audit: the audit log; None for none.
    """

    def __init__(
        self, source: str, operations: Collection[str], metrics: EventMetrics, audit: EventAudit | None = None
    ) -> None:
        self.source = source
        self.audit = audit
        self._operations = frozenset(operations)
        self._metrics = metrics
        self._broker_errors = metrics.broker_errors.labels(source)
        self.in_flight = metrics.in_flight.labels(source)

    def count_broker_error(self) -> None:
        """Count a broker error."""
        self._broker_errors.inc()

    def lag(self, messages: int | None) -> None:
        """Set the number of waiting messages; None if it is unknown."""
        if messages is None:
            self._metrics.lag.clear()
        else:
            self._metrics.lag.labels(self.source).set(messages)

    def begin(self, attempt: int) -> DeliveryReport:
        """Start a delivery's report; the current task's log lines and token usage are attributed to it from here on."""
        return DeliveryReport(self, attempt)

    def count(self, operation: str | None, outcome: Outcome, seconds: float, *, settled: bool) -> str:
        """Count a delivery's end in the metrics, and return the outcome's name."""
        label = operation if operation in self._operations else _OTHER_OPERATION
        name = _outcome_name(outcome) if settled else "unsettled"
        self._metrics.events.labels(self.source, label, name).inc()
        self._metrics.seconds.labels(self.source, label).observe(seconds)
        if settled and isinstance(outcome, Retry):
            self._metrics.retries.labels(self.source, outcome.error.code).inc()
        elif settled and isinstance(outcome, Reject):
            self._metrics.dead.labels(self.source, outcome.error.code).inc()
        return name


class DeliveryReport:
    """The report of one delivery.

    Args:
        reporter: the source's reporter.
        attempt: the number of deliveries so far, including this one.
    """

    def __init__(self, reporter: DeliveryReporter, attempt: int) -> None:
        self._reporter = reporter
        self._attempt = attempt
        self._started = time.perf_counter()
        self._envelope: Envelope | None = None
        self._usage = UsageCounter()
        self._facts: dict[str, Any] = {}  # ``request_facts`` holds this object; the tracer adds the trace's ids to it
        # A rate limit's reservation function, if an HTTP request brought the events, stays that of the request.
        request_scope.set(replace(request_scope.get(), caller=f"events:{reporter.source}", usage=self._usage))
        reporter.in_flight.inc()

    def identify(self, envelope: Envelope) -> None:
        """Add the envelope's id and trace to all following log lines and spans."""
        self._envelope = envelope
        self._facts["request_id"] = envelope.id
        self._facts |= continue_trace(envelope.traceparent)
        request_facts.set(self._facts)

    def write_audit_record(self, outcome: Outcome, policy: Policy) -> Outcome:
        """Write the audit record, and return the outcome: a retry if the record is required and cannot be written."""
        audit = self._reporter.audit
        if audit is None:
            return outcome
        seconds = time.perf_counter() - self._started
        source, trace_id = self._reporter.source, self._facts.get("trace_id")
        written = audit.record(source, self._envelope, self._attempt, outcome, self._usage, trace_id, seconds)
        return outcome if written or not audit.required else not_recordable(policy, self._attempt)

    def end(self, outcome: Outcome, *, settled: bool) -> None:
        """Report the end of the delivery.

        Args:
            outcome: the outcome of the processing.
            settled: whether the broker confirmed the outcome; if not, the message is redelivered.
        """
        reporter, envelope = self._reporter, self._envelope
        seconds = time.perf_counter() - self._started
        reporter.in_flight.dec()
        operation = None if envelope is None else envelope.operation
        name = reporter.count(operation, outcome, seconds, settled=settled)
        level = logging.WARNING if isinstance(outcome, Reject) or not settled else logging.INFO
        if _log.isEnabledFor(level):
            facts = {
                "source": reporter.source,
                "operation": operation,
                "attempt": self._attempt,
                "outcome": name,
                "code": None if isinstance(outcome, Ack) else outcome.error.code,
                "duration_ms": round(1e3 * seconds, 2),
                **self._usage.tokens,
            }
            log_facts(_log, level, f"event {name}", facts)


def not_recordable(policy: Policy, attempt: int) -> Outcome:
    """Return the outcome of a delivery that cannot be recorded in the audit log."""
    return policy.outcome(AuditUnavailable("events cannot be recorded in the audit log now", retry_after=1), attempt)


def _outcome_name(outcome: Outcome) -> str:
    if isinstance(outcome, Ack):
        return "repeated" if outcome.repeated else "acked"
    return "retried" if isinstance(outcome, Retry) else "rejected"
