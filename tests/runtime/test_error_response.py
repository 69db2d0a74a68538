"""runtime.error_response: one rendering of errors for every adapter that speaks HTTP."""

from __future__ import annotations

import json

from runtime.error_response import error_response
from runtime.errors import InvalidRequest, MethodNotAllowed, TooManyRequests, Unauthenticated


def test_openai_shape() -> None:
    """OpenAI's routes get its error object, with the field at fault."""
    response = error_response(InvalidRequest("n: at most 16", param="n"), openai=True)
    assert (response.status, response.headers) == (400, {"Content-Type": "application/json; charset=utf-8"})
    error = json.loads(response.body)["error"]
    assert (error["message"], error["param"], error["code"]) == ("n: at most 16", "n", "invalid_request")


def test_problem_details() -> None:
    """All other routes get problem details of RFC 9457."""
    response = error_response(InvalidRequest("n: at most 16", param="n"), openai=False)
    assert response.headers == {"Content-Type": "application/problem+json; charset=utf-8"}
    assert json.loads(response.body)["detail"] == "n: at most 16"


def test_header_fields_of_single_errors() -> None:
    """Retry-After is whole seconds and never 0; a challenge and the allowed methods stand where HTTP asks for them."""
    assert error_response(TooManyRequests("full", retry_after=0.2), openai=False).headers["Retry-After"] == "1"
    assert error_response(TooManyRequests("full", retry_after=2.1), openai=False).headers["Retry-After"] == "3"
    assert error_response(Unauthenticated("no key"), openai=True).headers["WWW-Authenticate"]
    assert error_response(MethodNotAllowed("no"), openai=True, allow=["GET", "HEAD"]).headers["Allow"] == "GET,HEAD"
