"""One record per delivery in the audit log: who asked for what, how it ended and what it cost.

As for requests (``middleware.audit``), of an event's text only a keyed hash is kept, and nothing of its headers but its
id and its trace. ``result`` is ``ok``, ``retried``, ``refused`` (the sender's fault) or ``failed`` (ours).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runtime.audit.chain import prompt_hash
from runtime.audit.log import AuditLog
from runtime.events.envelope import Envelope
from runtime.events.outcome import Ack, Outcome, Retry

_LONGEST = 512  # characters of what a stranger may make as long as they like


class EventAudit:
    """See the module.

    Args:
        log: open while there are events.
        prompt_key: for prompt hashes.
        required: whether nothing may be done unrecorded.
    """

    def __init__(self, log: AuditLog, prompt_key: bytes, *, required: bool) -> None:
        self._log = log
        self._prompt_key = prompt_key
        self.required = required

    @property
    def prevents(self) -> bool:
        """Whether nothing may be done now, because it could not be recorded."""
        return self.required and self._log.failing

    def record(
        self,
        source: str,
        envelope: Envelope | None,
        attempt: int,
        outcome: Outcome,
        usage: Mapping[str, Any],
        trace_id: str | None,
        seconds: float,
    ) -> bool:
        """Write a delivery's record; whether that worked.

        Args:
            source: that the delivery is from.
            envelope: None of a message that held none.
            attempt: how often it was delivered.
            outcome: of the work.
            usage: tokens, see ``runtime.telemetry.request_scope.request_usage``.
            trace_id: of the caller's trace, if it sent one.
            seconds: that it took.
        """
        payload = {} if envelope is None else envelope.data
        model = payload.get("model")
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
            "tokens_in": usage.get("prompt_tokens"),
            "tokens_out": usage.get("completion_tokens"),
            "model": model[:_LONGEST] if isinstance(model, str) else None,
            "duration_ms": round(1e3 * seconds, 2),
            "prompt_hash": prompt_hash(self._prompt_key, payload),
        }
        return self._log.write("delivery", fields)
