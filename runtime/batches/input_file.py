"""Reads a batch's input file: JSON Lines of requests, one at a time, never the whole file (OpenAI's Batch API)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.batch_types import InputError
from runtime.batches.database import storage_errors
from runtime.errors import InvalidRequest
from runtime.strict_json import loads

_MEMBERS = ("custom_id", "method", "url", "body")
_MAX_ID_CHARS = 512


@dataclass(frozen=True, slots=True)
class InputLimits:
    """Limits of an input file.

    Args:
        rows: the largest number of rows (BATCH_MAX_ROWS).
        row_bytes: the largest size of a row in bytes (MAX_BODY_BYTES).
        depth: the deepest nesting of a row's body (MAX_JSON_DEPTH).
    """

    rows: int
    row_bytes: int
    depth: int


@dataclass(frozen=True, slots=True)
class InputRow:
    """A valid row: its line from 1, its own id, and where it is in the file, in bytes."""

    line: int
    custom_id: str
    offset: int
    length: int


def read_rows(path: Path, endpoint: str, limits: InputLimits) -> Iterator[InputRow | InputError]:
    """Yield each row of an input file, or what is wrong with it. Blank lines are skipped.

    Args:
        path: the file.
        endpoint: the URL that every row must have.
        limits: the file's limits; nothing is read behind the last row that is allowed.

    Raises:
        StorageUnavailable: the file cannot be read.
    """
    with storage_errors(), path.open("rb") as file:
        rows, line, offset = 0, 0, 0
        while text := file.readline(limits.row_bytes + 1):
            line += 1
            start, offset = offset, offset + len(text)
            if len(text) > limits.row_bytes and not text.endswith(b"\n"):
                yield InputError(
                    "row_too_large", f"the row is larger than {limits.row_bytes} bytes (MAX_BODY_BYTES)", line
                )
                while text and not text.endswith(b"\n"):  # the rest of the line
                    text = file.readline(limits.row_bytes + 1)
                    offset += len(text)
                rows += 1
                continue
            if not text.strip():
                continue
            rows += 1
            if rows > limits.rows:
                yield InputError("too_many_rows", f"the file has more than {limits.rows} rows (BATCH_MAX_ROWS)", line)
                return
            row = read_row(text, line, endpoint, limits.depth)
            yield row if isinstance(row, InputError) else InputRow(line, row["custom_id"], start, len(text))


def read_row(text: bytes, line: int, endpoint: str, depth: int) -> dict[str, Any] | InputError:
    """Return a row with its members ``custom_id``, ``method``, ``url`` and ``body``, or what is wrong with it.

    Args:
        text: the line.
        line: its number from 1.
        endpoint: the URL that it must have.
        depth: the deepest nesting of its body.
    """
    try:
        row = loads(text, depth + 1)
    except InvalidRequest as error:
        return InputError("invalid_json_line", error.message.replace("the body", "the row", 1), line)
    if not isinstance(row, dict):
        return InputError("invalid_json_line", "the row must be a JSON object", line)
    fault = next(_faults(row, endpoint), None)
    return row if fault is None else InputError(fault[0], f"{fault[1]}: {fault[2]}", line, fault[1])


def _faults(row: dict[str, Any], endpoint: str) -> Iterator[tuple[str, str, str]]:
    """Yield code, member and message of each fault of a row."""
    for member in _MEMBERS:
        if member not in row:
            yield "missing_required_parameter", member, "this member is missing"
    custom_id = row["custom_id"]
    if not (isinstance(custom_id, str) and 0 < len(custom_id) <= _MAX_ID_CHARS and custom_id.isprintable()):
        yield "invalid_custom_id", "custom_id", f"should be a text of 1 to {_MAX_ID_CHARS} printable characters"
    if row["method"] != "POST":
        yield "invalid_method", "method", "should be POST"
    if row["url"] != endpoint:
        yield "invalid_url", "url", f"should be {endpoint}, the batch's endpoint"
    if not isinstance(row["body"], dict):
        yield "invalid_request", "body", "should be a JSON object"
    if row["body"].get("stream") not in (None, False):
        yield "invalid_request", "body.stream", "answers of a batch are not streamed; leave this field out"
    for member in row:
        if member not in _MEMBERS:
            yield "invalid_request", _shown(member), "unknown member"


def _shown(text: str) -> str:
    """Return a text of the caller for a message: cut off, and without unprintable characters."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:100])
