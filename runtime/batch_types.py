"""What is kept of stored files and of batches: the types that the operations and ``runtime.batches`` share."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

BatchState = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]
"""The states of a batch, by the names of OpenAI's Batch API."""

ENDED_STATES: tuple[BatchState, ...] = ("completed", "failed", "expired", "cancelled")
"""The states that a batch does not leave."""

FilePurpose = Literal["batch", "batch_output"]
"""What a file is for: the input of batches, or the output of one."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file's metadata.

    Args:
        id: its id, ``file-`` and letters and digits.
        owner: the caller it belongs to; "" where callers are not distinguished.
        name: the name that its sender gave it.
        purpose: what it is for.
        size: bytes of its content.
        created: the Unix time of its creation in seconds.
        expires: the Unix time from which it is gone; None for never.
    """

    id: str
    owner: str
    name: str
    purpose: FilePurpose
    size: int
    created: int
    expires: int | None = None


@dataclass(frozen=True, slots=True)
class StagedUpload:
    """A file's content that has been received and belongs to no file yet.

    Args:
        path: the file that holds it.
        size: its bytes.
    """

    path: Path
    size: int


@dataclass(frozen=True, slots=True)
class InputError:
    """An error of a batch's input file, or of the batch as a whole.

    Args:
        code: a stable code.
        message: what is wrong.
        line: the line of the input file, from 1; None for the file as a whole.
        param: the member of the line that is wrong; None for the line as a whole.
    """

    code: str
    message: str
    line: int | None = None
    param: str | None = None


@dataclass(frozen=True, slots=True)
class BatchTokens:
    """Tokens that a batch's rows have used: ``cached`` of the ``input`` tokens were found in the prefix cache."""

    input: int = 0
    cached: int = 0
    output: int = 0


@dataclass(frozen=True, slots=True)
class StoredBatch:
    """A batch's record. Times are Unix times in seconds.

    Args:
        id: its id, ``batch_`` and letters and digits.
        owner: the caller it belongs to, as for ``StoredFile``.
        input_file: the id of its input file.
        endpoint: the path that all its rows are requests to.
        window: the completion window as it was requested, such as ``24h``.
        created: when it was created.
        expires: when its completion window ends.
        metadata: the caller's own key-value pairs; None for none.
        output_seconds: lifetime of its output files; None for the default.
        state: its state.
        in_progress: when its rows began to run.
        finalizing: when its output files began to be written.
        cancelling: when its cancellation was requested.
        ended: when it reached its final state.
        total: its rows, once the input file is validated.
        completed: rows that were answered.
        failed: rows that ended with an error.
        errors: the errors of its input file.
        output_file: the id of the file of answers; None while there is none, or no row was answered.
        error_file: the id of the file of errors, likewise.
        tokens: the tokens that its rows have used.
    """

    id: str
    owner: str
    input_file: str
    endpoint: str
    window: str
    created: int
    expires: int
    metadata: dict[str, str] | None = None
    output_seconds: int | None = None
    state: BatchState = "validating"
    in_progress: int | None = None
    finalizing: int | None = None
    cancelling: int | None = None
    ended: int | None = None
    total: int = 0
    completed: int = 0
    failed: int = 0
    errors: tuple[InputError, ...] = ()
    output_file: str | None = None
    error_file: str | None = None
    tokens: BatchTokens = field(default_factory=BatchTokens)


@dataclass(frozen=True, slots=True)
class PageRequest:
    """Which entries of a list are wanted.

    Args:
        limit: the largest number of entries.
        after: the id of the entry before the first one; None for the start of the list.
        descending: whether the newest come first.
    """

    limit: int
    after: str | None = None
    descending: bool = True
