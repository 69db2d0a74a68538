"""Writes one audit record per delivery: who asked for what, how it ended and what it cost.

As for HTTP requests (``middleware.audit``), only a keyed hash of the prompt is stored, and of the headers only the id
and the trace. ``result`` is ``ok``, ``retried``, ``refused`` (a 4xx error) or ``failed`` (a 5xx error).
"""

from __future__ import annotations

from runtime.audit.chain import prompt_hash, shown_model
from runtime.audit.log import AuditLog
from runtime.events.envelope import Envelope
from runtime.events.outcome import Ack, Outcome, Retry
from runtime.telemetry.request_scope import UsageCounter


class EventAudit:
    """Writes the audit records of deliveries.

    Args:
        log: the audit log, open as long as events are processed.
        prompt_key: the key of the prompt hashes.
        required: whether events must not be processed unless they can be recorded.
    """

    def __init__(self, log: AuditLog, prompt_key: bytes, *, required: bool) -> None:
        self._log = log
        self._prompt_key = prompt_key
        self.required = required

    @property
    def blocks_processing(self) -> bool:
        """Whether events must not be processed now because they could not be recorded."""
        return self.required and self._log.failing

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
        payload = {} if envelope is None else envelope.data
        error = None if isinstance(outcome, Ack) else outcome.error
        if error is None:
            result = "ok"
        elif isinstance(outcome, Retry):
            result = "retried"
        else:
            result = "refused" if error.status < 500 else "failed"
        fields = {
            "request_id": None if envelope is None else envelope.id,
            "trace_id": trace_id,
            "source": source,
            "operation": None if envelope is None else envelope.operation,
            "attempt": attempt,
            "result": result,
            "reason": None if error is None else error.code,
            **usage.tokens,
            "model": shown_model(payload),
            "duration_ms": round(1e3 * seconds, 2),
            "prompt_hash": prompt_hash(self._prompt_key, payload),
        }
        return self._log.write("delivery", fields)
