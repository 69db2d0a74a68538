"""Audit records of work for which no connection waits: deliveries of events, and rows of batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runtime.audit.chain import prompt_hash, shown_model
from runtime.audit.log import AuditLog
from runtime.errors import ServiceError
from runtime.telemetry.request_scope import UsageCounter


class WorkAudit:
    """Writes the audit records of one kind of work.

    As for HTTP requests (``middleware.audit``), only a keyed hash of the prompt is stored.

    Args:
        log: the audit log, open as long as work is done.
        prompt_key: the key of the prompt hashes.
        required: whether work must not be done unless it can be recorded.
    """

    def __init__(self, log: AuditLog, prompt_key: bytes, *, required: bool) -> None:
        self._log = log
        self._prompt_key = prompt_key
        self.required = required

    @property
    def blocks_work(self) -> bool:
        """Whether work must not be done now because it could not be recorded."""
        return self.required and self._log.failing

    def _write(
        self,
        event: str,
        fields: Mapping[str, Any],
        result: str,
        reason: str | None,
        payload: dict[str, Any],
        usage: UsageCounter,
        seconds: float,
    ) -> bool:
        """Write a record, and return whether that succeeded.

        Args:
            event: the record's kind.
            fields: what only this kind of record has, in order.
            result: how the work ended.
            reason: the code of its error; None for none.
            payload: the operation's payload.
            usage: its token counts.
            seconds: its duration.
        """
        common = {
            "result": result,
            "reason": reason,
            **usage.tokens,
            "model": shown_model(payload),
            "duration_ms": round(1e3 * seconds, 2),
            "prompt_hash": prompt_hash(self._prompt_key, payload),
        }
        return self._log.write(event, {**fields, **common})


def failed_result(error: ServiceError) -> str:
    """Return how work ended that failed: ``refused`` (a 4xx error) or ``failed`` (a 5xx error)."""
    return "refused" if error.status < 500 else "failed"
