"""Renders errors as HTTP responses without an HTTP library, so that all adapters render them alike."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from runtime.errors import ServiceError

ErrorForm = Literal["problem", "openai", "anthropic", "ollama"]
"""The form of an error's body: RFC 9457 problem details, OpenAI's error object, Anthropic's, or Ollama's message."""

_ANTHROPIC_TYPES: Mapping[int, str] = MappingProxyType(
    {
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        408: "timeout_error",
        413: "request_too_large",
        429: "rate_limit_error",
        503: "overloaded_error",
        504: "timeout_error",
    }
)


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


def error_body(error: ServiceError, form: ErrorForm) -> dict[str, Any]:
    """Return an error's body in one of the forms, decoded."""
    if form == "anthropic":
        kind = _ANTHROPIC_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
        return {
            "type": "error",
            "error": {"type": kind, "message": error.message, "details": {"error_code": error.code}},
        }
    if form == "ollama":
        return {"error": error.message, "code": error.code}
    return error.openai() if form == "openai" else error.problem()


def error_response(error: ServiceError, form: ErrorForm, *, allow: Sequence[str] = ()) -> ErrorResponse:
    """Render an error in OpenAI's, Anthropic's or Ollama's shape, or as problem details (RFC 9457).

    Args:
        error: the error.
        form: the shape.
        allow: the methods that the path supports, for ``Allow`` (RFC 9110 section 10.2.1); empty omits the field.
    """
    kind = "application/problem+json" if form == "problem" else "application/json"
    headers = {"Content-Type": f"{kind}; charset=utf-8"}
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    if error.challenge is not None:
        headers["WWW-Authenticate"] = error.challenge
    if allow:
        headers["Allow"] = ",".join(allow)
    return ErrorResponse(error.status, headers, json.dumps(error_body(error, form)).encode())
