"""Writes one audit record per delivery: who asked for what, how it ended and what it cost.

Of the headers only the id and the trace are stored. ``result`` is ``ok``, ``retried``, ``refused`` (a 4xx error) or
``failed`` (a 5xx error).
"""

from __future__ import annotations

from runtime.audit.work import WorkAudit, failed_result
from runtime.events.envelope import Envelope
from runtime.events.outcome import Ack, Outcome, Retry
from runtime.telemetry.request_scope import UsageCounter


class EventAudit(WorkAudit):
    """Writes the audit records of deliveries."""

    def record(
        self,
        source: str,
        envelope: Envelope | None,
        attempt: int,
        outcome: Outcome,
        usage: UsageCounter,
        trace_id: str | None,
        seconds: float,
    ) -> bool:
        """Write a delivery's record, and return whether that succeeded.

        Args:
            source: the name of the delivery's source.
            envelope: the delivery's envelope; None if the message could not be parsed.
            attempt: the number of deliveries so far, including this one.
            outcome: the outcome of the processing.
            usage: the delivery's token counts.
            trace_id: the id of the caller's trace; None for none.
            seconds: the delivery's duration.
        """
        error = None if isinstance(outcome, Ack) else outcome.error
        result = "ok" if error is None else "retried" if isinstance(outcome, Retry) else failed_result(error)
        fields = {
            "request_id": None if envelope is None else envelope.id,
            "trace_id": trace_id,
            "source": source,
            "operation": None if envelope is None else envelope.operation,
            "attempt": attempt,
        }
        reason = None if error is None else error.code
        payload = {} if envelope is None else envelope.data
        return self._write("delivery", fields, result, reason, payload, usage, seconds)
