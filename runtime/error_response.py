"""Renders errors as HTTP responses without an HTTP library, so that all adapters render them alike."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from runtime.errors import ServiceError


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    """An HTTP response.

    Args:
        status: the status code (RFC 9110 section 15).
        headers: the header fields, with ``Content-Type``.
        body: the body, JSON in UTF-8.
    """

    status: int
    headers: dict[str, str]
    body: bytes


def error_response(error: ServiceError, *, openai: bool, allow: Sequence[str] = ()) -> ErrorResponse:
    """Render an error in OpenAI's shape, or as problem details (RFC 9457).

    Args:
        error: the error.
        openai: whether to use OpenAI's shape.
        allow: the methods that the path supports, for ``Allow`` (RFC 9110 section 10.2.1); empty omits the field.
    """
    kind = "application/json" if openai else "application/problem+json"
    headers = {"Content-Type": f"{kind}; charset=utf-8"}
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    if error.challenge is not None:
        headers["WWW-Authenticate"] = error.challenge
    if allow:
        headers["Allow"] = ",".join(allow)
    return ErrorResponse(error.status, headers, json.dumps(error.openai() if openai else error.problem()).encode())
