"""Writes one audit record each time that a row of a batch has run in this process: for whom, how it ended, its cost.

Rows that are sent to a queue are recorded by their workers, as deliveries (``runtime.events.audit``). ``result`` is
``ok``, ``refused`` (a 4xx error), ``failed`` (a 5xx error) or ``stopped`` (the batch ended, or the service).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from runtime.audit.work import WorkAudit, failed_result
from runtime.batch_types import StoredBatch
from runtime.errors import AuditUnavailable, ServiceError
from runtime.telemetry.request_scope import UsageCounter


class RowAudit(WorkAudit):
    """Writes the audit records of rows."""

    @contextmanager
    def recorded(
        self, batch: StoredBatch, operation: str, body: dict[str, Any], request_id: str, usage: UsageCounter
    ) -> Iterator[None]:
        """Record that a row runs inside the block.

        Args:
            batch: the row's batch.
            operation: the operation of its endpoint.
            body: the request's body.
            request_id: the request's id in the log.
            usage: the row's token counts.

        Raises:
            AuditUnavailable: the record is required and cannot be written. The row is to be run again.
        """
        if self.blocks_work:
            raise self._unavailable()
        started = time.perf_counter()
        result, reason = "stopped", None
        try:
            yield
            result = "ok"
        except ServiceError as error:
            result, reason = failed_result(error), error.code
            raise
        except Exception:
            result, reason = "failed", ServiceError.code
            raise
        finally:
            fields = {
                "request_id": request_id,
                "batch": batch.id,
                "key": batch.owner or None,
                "operation": operation,
            }
            written = self._write("row", fields, result, reason, body, usage, time.perf_counter() - started)
            if not written and self.required and result != "stopped":
                raise self._unavailable()

    @staticmethod
    def _unavailable() -> AuditUnavailable:
        return AuditUnavailable("rows of batches cannot be recorded in the audit log now", retry_after=1)
