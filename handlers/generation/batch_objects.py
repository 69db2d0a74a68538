"""Files and batches in the form of OpenAI's API, and the endpoints of batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

from handlers.batch_protocols import Batches, Files
from handlers.context import Context
from runtime.batch_types import ENDED_STATES, StoredBatch, StoredFile
from runtime.errors import FilesOff

ENDPOINTS: Mapping[str, str] = MappingProxyType(
    {
        "/v1/chat/completions": "chat",
        "/v1/completions": "completions",
        "/v1/responses": "responses",
        "/v1/messages": "messages",
        "/v1/decisions": "decisions",
        "/v1/embeddings": "embeddings",
        "/v1/rerank": "rerank",
        "/v1/score": "score",
        "/classify": "classify",
        "/generate": "generate",
        "/complete": "complete",
        "/models/compare": "compare",
    }
)
"""The paths to which a batch's rows can be requests, and their operations."""

_OFF = "this service keeps no files and has no batches (FILES_DIR)"


def files_of(ctx: Context) -> Files:
    """Return the context's files.

    Raises:
        FilesOff: it has none.
    """
    if ctx.files is None:
        raise FilesOff(_OFF)
    return ctx.files


def batches_of(ctx: Context) -> Batches:
    """Return the context's batches.

    Raises:
        FilesOff: it has none.
    """
    if ctx.batches is None:
        raise FilesOff(_OFF)
    return ctx.batches


def file_object(file: StoredFile) -> dict[str, Any]:
    """Return a file as ``FileObject``."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.size,
        "created_at": file.created,
        "expires_at": file.expires,
        "filename": file.name,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }


def batch_object(batch: StoredBatch) -> dict[str, Any]:
    """Return a batch as ``BatchObject``."""
    tokens = batch.tokens
    errors = {"object": "list", "data": [asdict(error) for error in batch.errors]} if batch.errors else None
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "errors": errors,
        "input_file_id": batch.input_file,
        "completion_window": batch.window,
        "status": batch.state,
        "output_file_id": batch.output_file,
        "error_file_id": batch.error_file,
        "created_at": batch.created,
        "in_progress_at": batch.in_progress,
        "expires_at": batch.expires,
        "finalizing_at": batch.finalizing,
        **{f"{state}_at": batch.ended if batch.state == state else None for state in ENDED_STATES},
        "cancelling_at": batch.cancelling,
        "request_counts": {"total": batch.total, "completed": batch.completed, "failed": batch.failed},
        "usage": {
            "input_tokens": tokens.input,
            "input_tokens_details": {"cached_tokens": tokens.cached},
            "output_tokens": tokens.output,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": tokens.input + tokens.output,
        },
        "metadata": batch.metadata,
    }


def page_object(entries: Sequence[dict[str, Any]], *, more: bool) -> dict[str, Any]:
    """Return a page of a list.

    Args:
        entries: the entries, each with an ``id``.
        more: whether there are more behind them.
    """
    return {
        "object": "list",
        "data": list(entries),
        "first_id": entries[0]["id"] if entries else None,
        "last_id": entries[-1]["id"] if entries else None,
        "has_more": more,
    }
