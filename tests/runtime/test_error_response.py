"""runtime.error_response: one rendering of errors for every adapter that speaks HTTP."""

from __future__ import annotations

import json

import pytest

from runtime.error_response import error_body, error_response
from runtime.errors import (
    DeadlineExceeded,
    InsufficientScope,
    InvalidRequest,
    InvalidSignature,
    MethodNotAllowed,
    ModelLoading,
    ModelNotFound,
    PayloadTooLarge,
    ServiceError,
    TooManyRequests,
)
from tests.runtime.test_errors import tree


@pytest.mark.parametrize("kind", list(tree()), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("param", [None, "messages.0.role"])
def test_shapes(kind: type[ServiceError], param: str | None) -> None:
    """OpenAI's object always has its four members; problem details (RFC 9457) have title, status, detail, our code, and
    the field at fault if there is one. Anthropic's object has a type and the message.
    """
    error = kind("what to do", param=param)
    response = error_response(error, "openai")
    assert (response.status, response.headers["Content-Type"]) == (kind.status, "application/json; charset=utf-8")
    fault = "rate_limit_error" if kind.status == 429 else "invalid_request_error"
    assert json.loads(response.body) == {
        "error": {
            "message": "what to do",
            "type": "server_error" if kind.status >= 500 else fault,
            "param": param,
            "code": kind.code,
        }
    }
    response = error_response(error, "problem")
    problem = "application/problem+json; charset=utf-8"
    assert (response.status, response.headers["Content-Type"]) == (kind.status, problem)
    expected = {"title": kind.title, "status": kind.status, "detail": "what to do", "code": kind.code}
    assert json.loads(response.body) == expected | ({"param": param} if param else {})
    response = error_response(error, "anthropic")
    assert (response.status, response.headers["Content-Type"]) == (kind.status, "application/json; charset=utf-8")
    body = json.loads(response.body)
    details = {"error_code": kind.code}
    shown = {"type": body["error"]["type"], "message": "what to do", "details": details}
    assert body == {"type": "error", "error": shown}


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InvalidRequest("m"), "invalid_request_error"),
        (InvalidSignature("m"), "authentication_error"),
        (InsufficientScope("m"), "permission_error"),
        (ModelNotFound("m"), "not_found_error"),
        (PayloadTooLarge("m"), "request_too_large"),
        (TooManyRequests("m"), "rate_limit_error"),
        (ServiceError("m"), "api_error"),
        (ModelLoading("m"), "overloaded_error"),
        (DeadlineExceeded("m"), "timeout_error"),
    ],
)
def test_types_of_anthropic(error: ServiceError, kind: str) -> None:
    """The type follows from the status, as in Anthropic's documentation of errors."""
    assert error_body(error, "anthropic")["error"]["type"] == kind


@pytest.mark.parametrize("kind", list(tree()), ids=lambda kind: kind.__name__)
def test_challenge(kind: type[ServiceError]) -> None:
    """401 names the credential that would help (RFC 9110 section 15.5.2); 403 only where another key would."""
    wanted = "Signature" if kind is InvalidSignature else "Bearer"
    credentials = kind.status == 401 or kind is InsufficientScope
    headers = error_response(kind("what to do"), "openai").headers
    assert headers.get("WWW-Authenticate") == (wanted if credentials else None)
    assert error_response(kind("what to do"), "problem").headers.keys() == headers.keys()


@pytest.mark.parametrize(
    ("seconds", "field"),
    [(None, None), (0, "1"), (0.01, "1"), (1, "1"), (1.01, "2"), (5, "5"), (59.5, "60"), (-3, "1")],
)
def test_retry_after(seconds: float | None, field: str | None) -> None:
    """Seconds are rounded up and never 0, so that nobody comes back too soon (RFC 9110 section 10.2.3)."""
    response = error_response(TooManyRequests("full", retry_after=seconds), "problem")
    assert response.headers.get("Retry-After") == field


def test_allowed_methods() -> None:
    """The methods that a path supports stand in Allow, and only there."""
    assert error_response(MethodNotAllowed("no"), "openai", allow=["GET", "HEAD"]).headers["Allow"] == "GET,HEAD"
    assert "Allow" not in error_response(MethodNotAllowed("no"), "openai").headers


def test_ollama_form() -> None:
    """Ollama's clients read the message as a text; the code is beside it."""
    response = error_response(InvalidRequest("options.top_p is too large", param="options.top_p"), "ollama")
    assert response.headers["Content-Type"] == "application/json; charset=utf-8"
    assert json.loads(response.body) == {"error": "options.top_p is too large", "code": "invalid_request"}
