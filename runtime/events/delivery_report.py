"""What is told of each delivery: a line in the log, the metrics, and a record in the audit log."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from typing import Any

from runtime.errors import AuditUnavailable
from runtime.events.audit import EventAudit
from runtime.events.envelope import Envelope
from runtime.events.outcome import Ack, Outcome, Policy, Reject, Retry
from runtime.telemetry.event_metrics import EventMetrics
from runtime.telemetry.logging import log_facts
from runtime.telemetry.request_scope import request_caller, request_facts, request_usage
from runtime.telemetry.tracing import caller_trace, parse_traceparent

_log = logging.getLogger("warmstart.events")

_OTHER = "other"  # label of what is no operation, of which strangers can think up any number


class DeliveryReporter:
    """Of one source.

    Args:
        source: its name, as the log and the metrics show it.
        operations: that there are.
        metrics: of the process.
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

    def broker_away(self) -> None:
        """The broker did not answer as it should."""
        self._broker_errors.inc()

    def lag(self, messages: int | None) -> None:
        """So many messages wait; None if nobody knows."""
        if messages is None:
            self._metrics.lag.clear()
        else:
            self._metrics.lag.labels(self.source).set(messages)

    def begin(self, attempt: int) -> DeliveryReport:
        """A delivery came. What is logged and generated from here on, in this task, belongs to it."""
        return DeliveryReport(self, attempt)

    def count(self, operation: str | None, outcome: Outcome, seconds: float, *, settled: bool) -> str:
        """Count a delivery's end; how it is called."""
        label = operation if operation in self._operations else _OTHER
        name = _name(outcome) if settled else "unsettled"
        self._metrics.events.labels(self.source, label, name).inc()
        self._metrics.seconds.labels(self.source, label).observe(seconds)
        if settled and isinstance(outcome, Retry):
            self._metrics.retries.labels(self.source, outcome.error.code).inc()
        elif settled and isinstance(outcome, Reject):
            self._metrics.dead.labels(self.source, outcome.error.code).inc()
        return name


class DeliveryReport:
    """Of one delivery.

    Args:
        reporter: of its source.
        attempt: how often it was delivered.
    """

    def __init__(self, reporter: DeliveryReporter, attempt: int) -> None:
        self._reporter = reporter
        self._attempt = attempt
        self._started = time.perf_counter()
        self._envelope: Envelope | None = None
        self._usage: dict[str, Any] = {}
        self._facts: dict[str, Any] = {}  # also told the trace that is begun here
        request_usage.set(self._usage)
        request_caller.set(f"events:{reporter.source}")
        reporter.in_flight.inc()

    def name(self, envelope: Envelope) -> None:
        """What came is this: its id and its trace go into all lines and spans from now on."""
        self._envelope = envelope
        self._facts["request_id"] = envelope.id
        parent = envelope.traceparent
        if parent is not None and (trace := parse_traceparent(parent)) is not None:
            self._facts["trace_id"], self._facts["parent_id"] = trace
            caller_trace.set({"traceparent": parent})
        request_facts.set(self._facts)

    def recorded(self, outcome: Outcome, policy: Policy) -> Outcome:
        """The outcome, once the audit log has it; where it must have it and cannot, the delivery is tried again."""
        audit = self._reporter.audit
        if audit is None:
            return outcome
        seconds = time.perf_counter() - self._started
        source, trace_id = self._reporter.source, self._facts.get("trace_id")
        written = audit.record(source, self._envelope, self._attempt, outcome, self._usage, trace_id, seconds)
        return outcome if written or not audit.required else unrecorded(policy, self._attempt)

    def end(self, outcome: Outcome, *, settled: bool) -> None:
        """It is over.

        Args:
            outcome: of the work.
            settled: whether the broker took that; else the message comes again.
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
                "tokens_in": self._usage.get("prompt_tokens"),
                "tokens_out": self._usage.get("completion_tokens"),
            }
            log_facts(_log, level, f"event {name}", facts)


def unrecorded(policy: Policy, attempt: int) -> Outcome:
    """Of a delivery that cannot be recorded."""
    return policy.outcome(AuditUnavailable("events cannot be recorded at the moment", retry_after=1), attempt)


def _name(outcome: Outcome) -> str:
    if isinstance(outcome, Ack):
        return "repeated" if outcome.repeated else "acked"
    return "retried" if isinstance(outcome, Retry) else "rejected"
