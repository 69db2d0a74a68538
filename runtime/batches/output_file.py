"""Lines of a batch's output and error files (OpenAI's Batch API, "request output object")."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def response_line(row_id: str, custom_id: str, status: int, request_id: str, body: Mapping[str, Any]) -> bytes:
    """Return the line of a row that has a response, which may be an error.

    Args:
        row_id: an id of the line.
        custom_id: the row's own id.
        status: the HTTP status code.
        request_id: the id of the request in the log.
        body: the response's body.
    """
    response = {"status_code": status, "request_id": request_id, "body": body}
    return _line({"id": row_id, "custom_id": custom_id, "response": response, "error": None})


def unfinished_line(row_id: str, custom_id: str, code: str, message: str) -> bytes:
    """Return the line of a row that has no response.

    Args:
        row_id: an id of the line.
        custom_id: the row's own id.
        code: why there is none.
        message: the same for people.
    """
    error = {"code": code, "message": message}
    return _line({"id": row_id, "custom_id": custom_id, "response": None, "error": error})


def _line(members: Mapping[str, Any]) -> bytes:
    return json.dumps(members).encode() + b"\n"
