"""Response models of OpenAI's Files and Batch APIs, for OpenAPI and tests; the operations build plain dicts."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from handlers.schemas.responses import LazyModel
from handlers.schemas.responses_api_objects import OutputTokensDetails
from runtime.batch_types import BatchState, FilePurpose


class FileObject(LazyModel):
    """A stored file."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: FilePurpose
    status: Literal["processed"]
    status_details: None = None


class FileList(LazyModel):
    """A page of files."""

    object: Literal["list"]
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileText(LazyModel):
    """A file's content; over HTTP it is the body itself."""

    content: str


class DeletedFile(LazyModel):
    """A file that was deleted."""

    id: str
    object: Literal["file"]
    deleted: Literal[True]


class BatchErrorObject(LazyModel):
    """An error of a batch's input file."""

    code: str
    message: str
    line: int | None = Field(description="Line of the input file, from 1.")
    param: str | None


class BatchErrorList(LazyModel):
    """The errors of a batch's input file; at most the first 100."""

    object: Literal["list"]
    data: list[BatchErrorObject]


class BatchCounts(LazyModel):
    """Numbers of rows."""

    total: int
    completed: int
    failed: int


class BatchInputDetails(LazyModel):
    """Details of the input's tokens."""

    cached_tokens: int


class BatchUsageObject(LazyModel):
    """The tokens that a batch's rows have used so far."""

    input_tokens: int
    input_tokens_details: BatchInputDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class BatchObject(LazyModel):
    """A batch. Times are Unix times in seconds."""

    id: str
    object: Literal["batch"]
    endpoint: str
    errors: BatchErrorList | None
    input_file_id: str
    completion_window: str
    status: BatchState
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: BatchCounts
    usage: BatchUsageObject
    metadata: dict[str, str] | None


class BatchList(LazyModel):
    """A page of batches."""

    object: Literal["list"]
    data: list[BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool
