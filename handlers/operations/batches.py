"""``create_batch``, ``list_batches``, ``get_batch`` and ``cancel_batch``: OpenAI's Batch API."""

from __future__ import annotations

from typing import Any

from handlers.context import Context
from handlers.generation.batch_objects import ENDPOINTS, batch_object, batches_of, page_object
from handlers.schemas.batches import BatchId, CreateBatchRequest, ListBatchesRequest, window_seconds
from handlers.schemas.parsing import parse
from runtime.batch_types import PageRequest, StoredBatch
from runtime.errors import InsufficientScope, InvalidRequest


async def create(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Create a batch: takes a ``CreateBatchRequest``, returns a ``BatchObject``.

    Raises:
        FilesOff: the service has no batches.
        InvalidRequest: a field is wrong, or the input file has another purpose.
        InsufficientScope: the caller may not call the endpoint's operation.
        NotFound: the caller has no such input file.
        TooManyRequests: too many batches of the caller have not ended.
        StorageFull: the disk is full.
        StorageUnavailable: the batch cannot be stored.
    """
    batches = batches_of(ctx)
    request = parse(CreateBatchRequest, payload)
    operation = ENDPOINTS.get(request.endpoint)
    if operation is None:
        raise InvalidRequest(f"endpoint: should be one of {', '.join(ENDPOINTS)}", param="endpoint")
    if not ctx.may_call(operation):
        raise InsufficientScope(
            f"endpoint: the operation {operation} requires the scope {operation!r}, which this key does not have",
            param="endpoint",
        )
    created, expiry = int(ctx.clock.time()), request.output_expires_after
    batch = StoredBatch(
        f"batch_{ctx.new_id()}",
        ctx.caller(),
        request.input_file_id,
        request.endpoint,
        request.completion_window,
        created,
        created + window_seconds(request.completion_window),
        request.metadata,
        None if expiry is None else expiry.seconds,
    )
    return batch_object(await batches.create(batch))


async def list_batches(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Return a page of the caller's batches, the newest first: takes a ``ListBatchesRequest``, returns a ``BatchList``.

    Raises:
        FilesOff: the service has no batches.
        InvalidRequest: the page begins after a batch that does not exist.
        StorageUnavailable: the batches cannot be read.
    """
    batches = batches_of(ctx)
    request = parse(ListBatchesRequest, payload)
    found, more = await batches.page(ctx.caller(), PageRequest(request.limit, request.after))
    return page_object([batch_object(batch) for batch in found], more=more)


async def get(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Return a batch: takes a ``BatchId``, returns a ``BatchObject``.

    Raises:
        FilesOff: the service has no batches.
        NotFound: the caller has no such batch.
        StorageUnavailable: the batch cannot be read.
    """
    batches = batches_of(ctx)
    return batch_object(await batches.find(ctx.caller(), parse(BatchId, payload).batch_id))


async def cancel(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Cancel a batch: takes a ``BatchId``, returns a ``BatchObject``.

    Rows that have a result are in its output files; the others are stopped.

    Raises:
        FilesOff: the service has no batches.
        NotFound: the caller has no such batch.
        InvalidRequest: the batch has ended otherwise, or is about to.
        StorageUnavailable: the batch cannot be changed.
    """
    batches = batches_of(ctx)
    return batch_object(await batches.cancel(ctx.caller(), parse(BatchId, payload).batch_id))
