"""Opens the store of files and batches, and runs the rows of batches as background work."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from handlers.context import Context
from handlers.dispatch.lookup import find
from handlers.dispatch.queued_rows import QueuedRows, queue_of
from handlers.generation.batch_objects import ENDPOINTS
from runtime.batch_types import StoredBatch
from runtime.batches.audit import RowAudit
from runtime.batches.batches import BatchStore
from runtime.batches.database import BatchDatabase
from runtime.batches.files import FileStore
from runtime.batches.group_commit import GroupCommit
from runtime.batches.input_file import InputLimits
from runtime.batches.resources import BatchResources, RowAnswer, RowHandler
from runtime.batches.runner import BatchRunner
from runtime.batches.slots import Slots
from runtime.error_response import ErrorForm, error_body
from runtime.errors import ServiceError
from runtime.events.outcome import Policy
from runtime.events.queues.factory import open_submitter
from runtime.settings import Settings
from runtime.telemetry.batch_metrics import BatchMetrics
from runtime.telemetry.request_scope import RequestScope, UsageCounter, request_facts, request_scope
from runtime.types import TokenUsage


def open_files(settings: Settings, clock: Callable[[], float] = time.time) -> tuple[BatchDatabase, FileStore] | None:
    """Open the files that the settings name; None without FILES_DIR. Nothing is created before the first use.

    Args:
        settings: the settings.
        clock: returns Unix time in seconds.
    """
    if settings.files_dir is None:
        return None
    database = BatchDatabase(settings.files_dir)
    return database, FileStore(
        database,
        max_bytes=settings.files_max_bytes,
        total_bytes=settings.files_total_bytes,
        ttl_seconds=settings.files_ttl_seconds,
        clock=clock,
    )


def runner_of(
    settings: Settings,
    ctx: Context,
    metrics: BatchMetrics,
    error_form: Callable[[str], ErrorForm],
    audit: RowAudit | None = None,
) -> BatchRunner | None:
    """Build the runner of batches without starting it; None without FILES_DIR.

    Args:
        settings: the settings.
        ctx: the context of the rows' operations.
        metrics: the metrics of batches.
        error_form: returns the form of errors on a path.
        audit: records rows that run in this process; None for no records.

    Raises:
        SettingsError: BATCH_STREAM is set, and EVENTS_URL is invalid or its library is not installed.
    """
    opened = open_files(settings, ctx.clock.time)  # its own, so that requests do not wait for the rows' transactions
    if opened is None:
        return None
    database, files = opened
    handler: RowHandler = RowDispatcher(ctx, error_form, audit)
    if settings.batch_stream:
        handler = QueuedRows(open_submitter(queue_of(settings)), error_form)
    runner = BatchRunner(
        BatchResources(
            database,
            files,
            handler,
            Slots(settings.batch_concurrency),
            GroupCommit(database),
            Policy(max_deliveries=settings.events_max_deliveries),
            InputLimits(settings.batch_max_rows, settings.max_body_bytes, settings.max_json_depth),
            metrics,
            ctx.clock.time,
        )
    )
    if isinstance(ctx.batches, BatchStore):
        ctx.batches.on_change = runner.wake
    return runner


class RowDispatcher:
    """Calls the operations of rows; implements ``runtime.batches.resources.RowHandler``.

    Args:
        ctx: the operations' context, with the caller and the usage of ``request_scope``.
        error_form: returns the form of errors on a path.
        audit: records the rows; None for no records.
    """

    in_process = True

    def __init__(self, ctx: Context, error_form: Callable[[str], ErrorForm], audit: RowAudit | None = None) -> None:
        self._ctx = replace(ctx, background=True)
        self._error_form = error_form
        self._audit = audit

    async def run(self, batch: StoredBatch, body: dict[str, Any], request_id: str) -> RowAnswer:
        """Run a row as its batch's owner. It is not charged to the owner's rate limit.

        Args:
            batch: the row's batch.
            body: the request's body.
            request_id: the request's id for the log.

        Raises:
            AuditUnavailable: the row must be recorded in the audit log and cannot be.
            ServiceError: the operation's own errors.
        """
        usage = UsageCounter()
        request_scope.set(RequestScope(caller=batch.owner, usage=usage))
        request_facts.set({"request_id": request_id})
        operation, audit = ENDPOINTS[batch.endpoint], self._audit
        with nullcontext() if audit is None else audit.recorded(batch, operation, body, request_id, usage):
            answer = await find(operation, self._ctx).handle(body, self._ctx)
        return RowAnswer(answer, request_id, usage.total or TokenUsage())

    def render(self, batch: StoredBatch, error: ServiceError) -> Mapping[str, Any]:
        """Return the body of the response with an error, in the form of the batch's endpoint."""
        return error_body(error, self._error_form(batch.endpoint))

    async def close(self) -> None:
        """Nothing is to be released."""
