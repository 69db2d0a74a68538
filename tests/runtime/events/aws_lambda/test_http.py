"""AWS Lambda's events that are HTTP requests: what is read from them, and how an answer to each looks."""

from __future__ import annotations

import json
from typing import Any

import pytest

from runtime.errors import InvalidRequest
from runtime.events.aws_lambda.http import HttpRequest, read_request, write_response
from runtime.events.aws_lambda.kinds import kind_of
from tests.support.lambda_events import load


def _read(event: dict[str, Any]) -> HttpRequest:
    kind: Any = kind_of(event)
    return read_request(event, kind)


def _v2(**changes: Any) -> dict[str, Any]:
    event = load("apigw_http_v2_post")
    context = event["requestContext"] | {name: changes.pop(name) for name in ("stage", "domainName") if name in changes}
    return event | {"requestContext": context} | changes


def _v1(**changes: Any) -> dict[str, Any]:
    return load("apigw_rest_post") | changes


@pytest.mark.parametrize(
    ("event", "path"),
    [
        (_v1(resource="/{proxy+}", path="/generate", pathParameters={"proxy": "generate"}), "/generate"),
        (_v1(resource="/{rest+}", path="/llm/v1/models", pathParameters={"rest": "v1/models"}), "/v1/models"),
        (_v1(resource="/v1/{proxy+}", path="/llm/v1/models", pathParameters={"proxy": "models"}), "/v1/models"),
        (
            _v1(resource="/models/{m}/load", path="/x/models/a%20b/load", pathParameters={"m": "a b"}),
            "/models/a b/load",
        ),
        (_v1(resource="/generate", path="/llm/generate"), "/generate"),
        (_v1(resource="/", path="/llm"), "/"),
        (load("apigw_http_v1"), "/generate"),
        (_v2(rawPath="/generate"), "/generate"),
        (_v2(rawPath="/models/a%20b/load"), "/models/a b/load"),
        (_v2(rawPath="/prod/generate", stage="prod"), "/generate"),
        (_v2(rawPath="/prod", stage="prod"), "/"),
        (_v2(rawPath="/production/generate", stage="prod"), "/production/generate"),
        (_v2(rawPath="/models/models", stage="models"), "/models"),
        (_v2(rawPath="/models", stage="models", domainName="api.example.com"), "/models"),
        (_v2(rawPath="/llm/generate", stage="prod", domainName="api.example.com"), "/llm/generate"),
        (_v2(rawPath="/llm/generate", routeKey="ANY /{proxy+}", pathParameters={"proxy": "generate"}), "/generate"),
        (_v2(rawPath="/prod/generate", routeKey="POST /generate", stage="prod"), "/generate"),
        (load("alb_post") | {"path": "/models/a%20b/load"}, "/models/a b/load"),
    ],
)
def test_paths(event: dict[str, Any], path: str) -> None:
    """Without the stage and without what a domain maps, by the route that matched; nothing is guessed."""
    assert _read(event).path == path


@pytest.mark.parametrize(
    ("event", "query"),
    [
        (
            _v1(multiValueQueryStringParameters={"a": ["1", "a b"]}, queryStringParameters={"a": "a b"}),
            {"a": ["1", "a b"]},
        ),
        (_v1(multiValueQueryStringParameters=None, queryStringParameters={"a": "%2F"}), {"a": ["%2F"]}),
        (_v1(multiValueQueryStringParameters=None, queryStringParameters=None), {}),
        (_v2(rawQueryString="a=1&a=b+c&d=%2F&e"), {"a": ["1", "b c"], "d": ["/"], "e": [""]}),
        (load("alb_post") | {"queryStringParameters": {"a%5B": "b+c%2F"}}, {"a[": ["b c/"]}),
        (load("alb_multi_value"), {"model": ["acme/small one"]}),
    ],
)
def test_queries(event: dict[str, Any], query: dict[str, list[str]]) -> None:
    """Decoded once: API Gateway has done so in its format 1.0, a load balancer never does."""
    assert _read(event).query == query


def test_headers_and_cookies() -> None:
    """By names in small letters; lists are joined, and cookies, which format 2.0 has apart, are a header again."""
    event = _v1(multiValueHeaders={"X-A": ["1", "2"], "X-B": []}, headers={"X-A": "2"})
    assert _read(event).headers == {"x-a": "1, 2"}
    assert _read(_v1(multiValueHeaders=None, headers={"X-A": "2"})).headers == {"x-a": "2"}
    assert _read(_v1(multiValueHeaders=None, headers=None)).headers == {}
    assert _read(load("apigw_http_v2_post")).headers["cookie"] == "session=8f14e45f; theme=dark"


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("application/json", ("application/json", None)),
        ("Application/JSON; charset=UTF-8", ("application/json", "UTF-8")),
        ('application/json;charset="utf-8"', ("application/json", "utf-8")),
        ("json", ("application/octet-stream", None)),
        ("", ("application/octet-stream", None)),
    ],
)
def test_content_types(line: str, found: tuple[str, str | None]) -> None:
    """As RFC 9110 section 8.3 has them."""
    assert _read(_v2(headers={"content-type": line})).content_type == found


def test_bodies() -> None:
    """Plain, in base64, or none."""
    assert _read(_v2(body="é")).body() == "é".encode()
    assert _read(_v2(body="w6k=", isBase64Encoded=True)).body() == "é".encode()
    assert _read(_v2(body="")).body() is _read(_v2(body=None)).body() is None
    for wrong in ("w6k", "w6k=!", "é"):
        with pytest.raises(InvalidRequest, match="not base64"):
            _read(_v2(body=wrong, isBase64Encoded=True)).body()


def test_a_body_that_is_no_string() -> None:
    """An object or an array, as somebody writes a test event by hand, is its JSON; anything else is refused."""
    assert json.loads(_read(_v2(body={"prompt": "é"})).body() or b"") == {"prompt": "é"}
    assert (_read(_v2(body=[1])).body(), _read(_v2(body={})).body()) == (b"[1]", b"{}")
    for body, base64 in ((1, False), (False, False), ({"a": 1}, True)):
        with pytest.raises(InvalidRequest, match="must be a string, or a JSON object"):
            _read(_v2(body=body, isBase64Encoded=base64)).body()


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("apigw_rest_post", {"headers": {"X-A": "1"}}),
        ("apigw_http_v2_post", {"headers": {"X-A": "1"}, "cookies": []}),
        ("alb_post", {"headers": {"X-A": "1"}, "statusDescription": "404 Not Found"}),
        ("alb_multi_value", {"multiValueHeaders": {"X-A": ["1"]}, "statusDescription": "404 Not Found"}),
    ],
)
def test_answers(name: str, answer: dict[str, Any]) -> None:
    """Each in its form; a load balancer that sends lists of headers reads nothing else."""
    request = _read(load(name))
    expected = {"statusCode": 404, "body": "é", "isBase64Encoded": False} | answer
    assert write_response(request, 404, {"X-A": "1"}, "é".encode()) == expected


def test_an_answer_to_head_has_no_body() -> None:
    """As RFC 9110 section 9.3.2 has it."""
    assert write_response(_read(load("function_url_iam_head")), 200, {}, b"x")["body"] == ""
