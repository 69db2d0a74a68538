"""Line breaks and control characters in whatever the service repeats: no new header, no second answer, no log line."""

from __future__ import annotations

import json

import pytest

from loadtests.service import Service
from tests.attacks.conftest import Start, log_lines
from tests.attacks.keys import KEY, record
from tests.attacks.raw import Answer, exchange

# All that an answer here may carry; the attacks try to add X-Evil.
_TEXT = """cache-control content-length content-security-policy content-type cross-origin-resource-policy date allow
    permissions-policy ratelimit ratelimit-policy referrer-policy retry-after server vary www-authenticate connection
    x-content-type-options x-frame-options x-request-id accept-encoding access-control-allow-origin
    access-control-expose-headers"""
HEADERS = set(_TEXT.split())
BREAKS = [
    "\r\nX-Evil: 1",
    "\nX-Evil: 1",
    "\rX-Evil: 1",
    "\r\n\r\nHTTP/1.1 200 OK\r\nX-Evil: 1\r\n\r\n",
    "\x85X-Evil: 1",
    "\u2028X-Evil: 1",
]
ENCODED = [
    "%0d%0aX-Evil:%201",
    "%0aX-Evil:%201",
    "%0dX-Evil:%201",
    "%0d%0a%0d%0aHTTP/1.1%20200%20OK%0d%0a%0d%0a",
    "%E5%98%8A%E5%98%8DX-Evil:%201",  # two characters whose low bytes are CR and LF
    "%c0%8aX-Evil:%201",
    "%u000aX-Evil",
    "%250d%250aX-Evil",
    "\\r\\nX-Evil: 1".replace(" ", ""),
    "%00",
    "%7f%1b%5b31m",
]


@pytest.fixture(scope="module")
def service(start: Start) -> Service:
    """All that reflects is on."""
    return start(
        RATE_LIMIT_ENABLED="true", RATE_LIMIT_REQUESTS_PER_MINUTE="1000000", CORS_ORIGINS="https://app.example"
    )


def _only(service: Service, raw: bytes) -> Answer:
    """The one answer there is; it has no header of the attack's."""
    answered = exchange(service.port, raw)
    (answer,) = answered.answers
    assert answered.closed
    assert set(answer.headers) <= HEADERS
    return answer


def _get(target: str, *fields: str, method: str = "GET") -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "Host: x", "Connection: close", *fields, "", ""]
    return "\r\n".join(lines).encode()


@pytest.mark.parametrize("text", ENCODED)
def test_encoded_line_breaks_stay_text(service: Service, text: str) -> None:
    """In paths, model names, query names and values: a plain refusal, and one line of JSON in the log."""
    for target in ("/nothing/{}", "/models/{}/load", "/models?{}=1", "/model-info?model={}", "/cache?x={}", "/{}"):
        method = "POST" if target.endswith("/load") else "DELETE" if target.startswith("/cache") else "GET"
        answer = _only(service, _get(target.replace("{}", text), method=method))
        assert 400 <= answer.status < 500 or (answer.status, target) == (200, "/models?{}=1")
    assert log_lines(service, "warmstart.access")


@pytest.mark.parametrize("text", BREAKS)
def test_line_breaks_in_a_body_stay_text(service: Service, text: str) -> None:
    """In field names, model names and values, which errors repeat."""
    for payload in (
        {text: 1},
        {"prompt": "x", "model": text},
        {"prompt": "x", "temperature": text},
        {"prompt": {text: text}},
    ):
        body = json.dumps(payload).encode()
        head = _get("/generate", "Content-Type: application/json", f"Content-Length: {len(body)}", method="POST")
        answer = _only(service, head + body)
        assert 400 <= answer.status < 500
        assert b"X-Evil: 1" not in answer.body.splitlines()


@pytest.mark.parametrize(
    "value",
    [
        "a b",
        "a%0d%0ab",
        "a" * 129,
        "<script>",
        "é",
        "a\tb",
        "",
        '"',
        "a,b",
        "../x",
        "a;b",
        "${jndi:x}",
        "a\x1b[31m",
        "\x85",
    ],
)
def test_request_ids_that_are_no_plain_names_are_replaced(service: Service, value: str) -> None:
    """Only 128 harmless characters come back; for anything else there is a fresh id."""
    answered = exchange(service.port, _get("/models", f"X-Request-Id: {value}"))
    for answer in answered.answers:  # none where the parser has refused the control character
        assert answer.header("x-request-id") != value
        assert set(answer.headers) <= HEADERS


@pytest.mark.parametrize(
    "value", [b"a\rX-Evil: 1", b"a\nX-Evil: 1", b"a\0b", b"a\r\n X-Evil: 1", b"\xff\xfe", b"a\x0bb"]
)
def test_control_characters_in_fields_come_back_nowhere(service: Service, value: bytes) -> None:
    """The request is refused, or its field is a text like another; no answer has a header from it."""
    for name in (
        b"X-Request-Id",
        b"Content-Type",
        b"Accept",
        b"Origin",
        b"traceparent",
        b"Cache-Control",
        b"X-API-Key",
    ):
        raw = b"GET /models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + name + b": " + value + b"\r\n\r\n"
        for answer in exchange(service.port, raw).answers:
            assert set(answer.headers) <= HEADERS
            assert answer.status in (200, 400)


def test_methods_and_media_types_come_back_harmless(service: Service) -> None:
    """405 and 415 repeat what was sent, as JSON text."""
    assert _only(service, _get("/models", method="X!#$%&'*+-.^_`|~")).status in (400, 405)
    evil = 'a/"b"; c="\\"<script>"'
    body = _get("/generate", f"Content-Type: {evil}", "Content-Length: 2", method="POST") + b"{}"
    answer = _only(service, body)
    assert answer.status == 415
    assert json.loads(answer.body)["code"] == "unsupported_media_type"


def test_challenges_repeat_nothing(start: Start) -> None:
    """WWW-Authenticate is the service's own words, whatever credential was sent."""
    service = start(API_KEYS=record(KEY, "k_narrow", "models"), AUTH_FAILURES_PER_MINUTE="1000000")
    for value in ("Bearer x", 'Bearer x", error="none', 'Basic realm="evil"', "Bearer " + "é" * 100, 'Digest x="y"'):
        answer = _only(service, _get("/models", f"Authorization: {value}"))
        assert answer.status == 401
        assert answer.header("www-authenticate") == 'Bearer realm="warmstart", error="invalid_token"'
    answer = _only(service, _get('/metrics?scope=",x="', f"Authorization: Bearer {KEY}"))
    assert answer.status == 403
    assert answer.header("www-authenticate") == (
        'Bearer realm="warmstart", error="insufficient_scope", scope="metrics"'
    )


def test_the_log_is_whole_lines(service: Service) -> None:
    """After all of the above every line of the log is one JSON object, and none has a control character."""
    text = service.log.read_text()
    for line in text.splitlines():
        assert json.loads(line)["level"]
    assert not [c for c in text if c != "\n" and not c.isprintable()]
