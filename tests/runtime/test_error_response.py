"""runtime.error_response: one rendering of errors for every adapter that speaks HTTP."""

from __future__ import annotations

import json

import pytest

from runtime.error_response import error_response
from runtime.errors import InsufficientScope, InvalidSignature, MethodNotAllowed, ServiceError, TooManyRequests
from tests.runtime.test_errors import tree


@pytest.mark.parametrize("kind", list(tree()), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("param", [None, "messages.0.role"])
def test_both_shapes(kind: type[ServiceError], param: str | None) -> None:
    """OpenAI's object always has its four members; problem details (RFC 9457) have title, status, detail, our code, and
    the field at fault if there is one.
    """
    error = kind("what to do", param=param)
    response = error_response(error, openai=True)
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
    response = error_response(error, openai=False)
    problem = "application/problem+json; charset=utf-8"
    assert (response.status, response.headers["Content-Type"]) == (kind.status, problem)
    expected = {"title": kind.title, "status": kind.status, "detail": "what to do", "code": kind.code}
    assert json.loads(response.body) == expected | ({"param": param} if param else {})


@pytest.mark.parametrize("kind", list(tree()), ids=lambda kind: kind.__name__)
def test_challenge(kind: type[ServiceError]) -> None:
    """401 names the credential that would help (RFC 9110 section 15.5.2); 403 only where another key would."""
    wanted = "Signature" if kind is InvalidSignature else "Bearer"
    credentials = kind.status == 401 or kind is InsufficientScope
    headers = error_response(kind("what to do"), openai=True).headers
    assert headers.get("WWW-Authenticate") == (wanted if credentials else None)
    assert error_response(kind("what to do"), openai=False).headers.keys() == headers.keys()


@pytest.mark.parametrize(
    ("seconds", "field"),
    [(None, None), (0, "1"), (0.01, "1"), (1, "1"), (1.01, "2"), (5, "5"), (59.5, "60"), (-3, "1")],
)
def test_retry_after(seconds: float | None, field: str | None) -> None:
    """Seconds are rounded up and never 0, so that nobody comes back too soon (RFC 9110 section 10.2.3)."""
    response = error_response(TooManyRequests("full", retry_after=seconds), openai=False)
    assert response.headers.get("Retry-After") == field


def test_allowed_methods() -> None:
    """The methods that a path supports stand in Allow, and only there."""
    assert error_response(MethodNotAllowed("no"), openai=True, allow=["GET", "HEAD"]).headers["Allow"] == "GET,HEAD"
    assert "Allow" not in error_response(MethodNotAllowed("no"), openai=True).headers
