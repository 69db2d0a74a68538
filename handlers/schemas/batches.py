"""Request models of OpenAI's Files and Batch APIs."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, Field, PlainValidator, WithJsonSchema, field_validator
from pydantic_core import PydanticCustomError

from handlers.schemas.fields import AnyText, encodable
from handlers.schemas.strict import Strict
from runtime.batch_types import FilePurpose, StagedUpload

MIN_LIFETIME, MAX_LIFETIME = 3600, 2_592_000
"""The shortest and longest lifetime of a file that a request may ask for, in seconds."""

_WINDOW = re.compile(r"([1-9][0-9]{0,4})([mhd])")
_UNIT_SECONDS = {"m": 60, "h": 3600, "d": 86_400}
_MIN_WINDOW, _MAX_WINDOW = 60, 2_592_000


def _number_of_digits(value: object) -> object:
    return int(value) if isinstance(value, str) and re.fullmatch("[0-9]{1,9}", value) else value


def window_seconds(window: str) -> int:
    """Return a completion window's seconds; 0 if it is not one."""
    found = _WINDOW.fullmatch(window)
    return int(found[1]) * _UNIT_SECONDS[found[2]] if found else 0


# A number in JSON, or its digits in a query or a form.
Digits = BeforeValidator(_number_of_digits)


def _content(value: object) -> str | StagedUpload:
    if isinstance(value, StagedUpload):
        return value
    if not isinstance(value, str):
        raise PydanticCustomError("string_type", "input should be a text")
    return encodable(value)


FileContent = Annotated[str | StagedUpload, PlainValidator(_content), WithJsonSchema({"type": "string"})]
"""A file's content: a text, or an upload that the HTTP service has received."""


class ExpiresAfter(Strict):
    """When a file is to be deleted."""

    anchor: Literal["created_at"] = Field(description="The time from which the seconds are counted.")
    seconds: Annotated[int, Digits] = Field(ge=MIN_LIFETIME, le=MAX_LIFETIME, description="Lifetime in seconds.")


class UploadFileRequest(Strict):
    """OpenAI's upload of a file, as multipart/form-data or as JSON."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "purpose": "batch",
                    "file": '{"custom_id": "1", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x"}}\n',
                }
            ]
        },
    )

    file: FileContent = Field(description="The content: a part of the form over HTTP, a text in JSON.")
    purpose: Literal["batch"] = Field(description="What the file is for; this server has batches only.")
    filename: AnyText = Field("file.jsonl", min_length=1, max_length=255, description="A name, returned with the file.")
    expires_after: ExpiresAfter | None = Field(
        None, description="When the file is to be deleted; by default after FILES_TTL_SECONDS."
    )


class FileId(Strict):
    """A file of the caller."""

    file_id: str = Field(min_length=1, max_length=256, description="The file's id.")


class ListFilesRequest(Strict):
    """Which of the caller's files are wanted."""

    after: str | None = Field(None, min_length=1, max_length=256, description="Id of the last file of the page before.")
    limit: Annotated[int, Digits] = Field(10_000, ge=1, le=10_000, description="Maximum number of files.")
    order: Literal["asc", "desc"] = Field("desc", description="desc: the newest first; asc: the oldest first.")
    purpose: FilePurpose | None = Field(None, description="Only files with this purpose.")


class CreateBatchRequest(Strict):
    """OpenAI's request for a batch."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"input_file_id": "file-1", "endpoint": "/v1/chat/completions", "completion_window": "24h"},
            ]
        }
    )

    input_file_id: str = Field(min_length=1, max_length=256, description="Id of an uploaded file of requests.")
    endpoint: str = Field(
        min_length=1, max_length=256, description="The path of an operation, to which all rows are requests."
    )
    completion_window: str = Field(
        max_length=16,
        pattern=r"^[1-9][0-9]{0,4}[mhd]$",
        description="Time after which rows that have not run are given up: 24h, or other minutes (m), hours (h) or "
        "days (d), from 1m to 30d.",
    )
    metadata: dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] | None = Field(
        None, max_length=16, description="Returned with the batch; not used."
    )
    output_expires_after: ExpiresAfter | None = Field(
        None, description="When the output files are to be deleted; by default after FILES_TTL_SECONDS."
    )

    @field_validator("completion_window")
    @classmethod
    def _in_range(cls, value: str) -> str:
        if not _MIN_WINDOW <= window_seconds(value) <= _MAX_WINDOW:
            raise PydanticCustomError("completion_window", "should be from 1m to 30d, such as 24h")
        return value


class BatchId(Strict):
    """A batch of the caller."""

    batch_id: str = Field(min_length=1, max_length=256, description="The batch's id.")


class ListBatchesRequest(Strict):
    """Which of the caller's batches are wanted."""

    after: str | None = Field(
        None, min_length=1, max_length=256, description="Id of the last batch of the page before."
    )
    limit: Annotated[int, Digits] = Field(20, ge=1, le=100, description="Maximum number of batches.")
