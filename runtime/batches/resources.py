"""What the jobs of batches share: the store, the limits, and the handler that runs rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from runtime.batch_types import StoredBatch
from runtime.batches.database import BatchDatabase
from runtime.batches.files import FileStore
from runtime.batches.group_commit import GroupCommit
from runtime.batches.input_file import InputLimits
from runtime.batches.slots import Slots
from runtime.errors import ServiceError
from runtime.events.outcome import Policy
from runtime.telemetry.batch_metrics import BatchMetrics
from runtime.types import TokenUsage


@dataclass(frozen=True, slots=True)
class RowAnswer:
    """The answer to a row.

    Args:
        body: the body of the response.
        request_id: the id of the request in the log.
        usage: the tokens used.
        status: the HTTP status of the response; an error is final, and the row is not run again.
    """

    body: Mapping[str, Any]
    request_id: str
    usage: TokenUsage
    status: int = 200


class RowHandler(Protocol):
    """Calls the operation of a row's endpoint."""

    in_process: bool
    """Whether rows run in this process, so that one of them may be at fault if it dies."""

    async def run(self, batch: StoredBatch, body: dict[str, Any], request_id: str) -> RowAnswer:
        """Run a row.

        Args:
            batch: its batch.
            body: the request's body.
            request_id: the request's id, for the log; the same whenever this row is run.

        Raises:
            ServiceError: the operation's own errors.
        """
        ...

    def render(self, batch: StoredBatch, error: ServiceError) -> Mapping[str, Any]:
        """Return the body of the response with an error, in the form of the endpoint."""
        ...

    async def close(self) -> None:
        """Release what it has; called when no row runs any more."""
        ...


@dataclass(frozen=True, slots=True)
class BatchResources:
    """What the jobs of one process share.

    Args:
        database: the database.
        files: the stored files.
        handler: runs rows.
        slots: limits the rows that run concurrently.
        commits: records starts and results.
        policy: says which errors of rows are retried.
        limits: the limits of input files.
        metrics: counts rows and batches.
        clock: returns Unix time in seconds.
    """

    database: BatchDatabase
    files: FileStore
    handler: RowHandler
    slots: Slots
    commits: GroupCommit
    policy: Policy
    limits: InputLimits
    metrics: BatchMetrics
    clock: Callable[[], float] = time.time
