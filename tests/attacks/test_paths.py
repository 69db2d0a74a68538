"""Ways to write a path, a method or a key so that a gate overlooks it."""

from __future__ import annotations

import pytest

from loadtests.service import Service
from tests.attacks.conftest import Start
from tests.attacks.keys import KEY, record
from tests.attacks.raw import Answer, exchange

_TEXT = """/models /models/ //models /./models /../models /livez/../models /livez/./../models /livez//../models
    /livez/%2e%2e/models /livez/%2E%2E/models /livez/..%2fmodels /livez%2f..%2fmodels /livez/.%2e/models
    /%2e%2e/models /livez/..%5cmodels /livez\\..\\models /livez;/../models /livez/..;/models /livez;x=/models
    /models;x /models;/livez /models/livez /models?/livez /models?path=/livez /models?x=../livez /%6dodels /%6Dodels
    /mod%65ls /%256dodels /models%00 /models%00/livez /models%20 /models%09 /models%0d%0a /MODELS /Models /models.
    /models.json /models/..;/livez/../../models /health/../models /health/models /readyz/../stats /livezz /livez/x
    /livez%2f /livez%2fx /livez/ //livez /LIVEZ /Livez /livez%00 /livez. /livez;x /%2flivez /livez%3f /livez%23x
    /x/../livez%2f..%2fmodels /stats /metrics /cache/stats /v1/models /model-info /openapi.json /docs /redoc /
    /page/ /vendor/ /favicon.ico /nothing /.env /.git/config /etc/passwd /..%2f..%2fetc%2fpasswd
    /models/%2e%2e%2fgenerate/load /models/../generate /models/x%2fload /static/..%2f..%2fserver.py
    http://x/models http://x//models HTTP://X/models http://x/livez/../models * models ?/models"""
TRICKS = _TEXT.split()


@pytest.fixture(scope="module")
def locked(start: Start) -> Service:
    """It wants keys, and this address may fail as often as it likes."""
    return start(API_KEYS=record(KEY), CORS_ORIGINS="https://app.example", AUTH_FAILURES_PER_MINUTE="1000000")


def _ask(service: Service, target: str, *fields: str, method: str = "GET", body: str = "") -> Answer:
    """The first answer; targets are sent as they are."""
    length = [f"Content-Length: {len(body)}"] if body else []
    raw = "\r\n".join([f"{method} {target} HTTP/1.1", "Host: x", "Connection: close", *length, *fields, "", body])
    (answer,) = exchange(service.port, raw.encode()).answers
    return answer


@pytest.mark.parametrize("target", TRICKS)
def test_no_path_gets_around_the_keys(locked: Service, target: str) -> None:
    """401 for all that is no probe, however it is written and whether it is there or not; or it is no request."""
    assert _ask(locked, target).status in (400, 401)


@pytest.mark.parametrize("target", [*TRICKS, "/livez", "/readyz", "/health"])
def test_no_path_gets_around_the_allowlist(start: Start, target: str) -> None:
    """403 for everything from an address that is not allowed, probes too; or it is no request."""
    assert _ask(start(ALLOWED_IPS="10.0.0.0/8"), target).status in (400, 403)


@pytest.mark.parametrize("target", ["/models", "//models", "/livez/../models", "/%6dodels"])
def test_the_tricks_are_paths(locked: Service, target: str) -> None:
    """The control: with a key they are answered by what is there, so it was the key that was missing."""
    assert _ask(locked, target, f"Authorization: Bearer {KEY}").status in (200, 404)


@pytest.mark.parametrize("target", ["/livez", "/health"])
def test_probes_stay_open(locked: Service, target: str) -> None:
    """What watches the service needs no key."""
    assert _ask(locked, target).status == 200


@pytest.mark.parametrize(
    "method",
    ["HEAD", "OPTIONS", "TRACE", "PUT", "PATCH", "DELETE", "POST", "get", "GETX", "PROPFIND", "QUERY", "DEBUG"],
)
def test_no_method_gets_around_the_keys(locked: Service, method: str) -> None:
    """401 whatever the method, also for one that the path does not have; or it is no request."""
    for target in ("/models", "/generate", "/cache", "/nothing"):
        raw = f"{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
        with_body = exchange(locked.port, raw.replace(b"HEAD", b"GET"))  # the client cannot read answers to HEAD
        assert with_body.statuses[0] in (400, 401), target


def test_head_is_locked(locked: Service) -> None:
    """HEAD is GET without the words, and asks for the same key."""
    from http.client import HTTPConnection

    connection = HTTPConnection("127.0.0.1", locked.port, timeout=15)
    connection.request("HEAD", "/models")
    assert connection.getresponse().status == 401
    connection.close()


@pytest.mark.parametrize(
    "field",
    [
        "X-HTTP-Method-Override: DELETE",
        "X-HTTP-Method: DELETE",
        "X-Method-Override: DELETE",
        "X-Original-URL: /models",
        "X-Rewrite-URL: /models",
        "X-Original-Uri: /models",
        "X-Forwarded-Prefix: /models",
        "X-Forwarded-Path: /models",
        "X-Original-Method: DELETE",
    ],
)
def test_no_header_changes_what_is_asked(locked: Service, field: str) -> None:
    """The request line says what is asked: a probe stays a probe, and a locked route locked."""
    assert b"alive" in _ask(locked, "/livez", field).body
    assert _ask(locked, "/models", field.replace("/models", "/livez")).status == 401
    assert _ask(locked, "/livez?_method=DELETE", field).status == 200


@pytest.mark.parametrize(
    "fields",
    [
        ("Access-Control-Request-Method: POST",),
        ("Origin: https://app.example", "Access-Control-Request-Method: POST"),
        ("Origin: https://evil.example", "Access-Control-Request-Method: POST"),
        ("Origin: null", "Access-Control-Request-Method: POST", "Access-Control-Request-Headers: authorization"),
    ],
)
def test_a_preflight_runs_nothing(locked: Service, fields: tuple[str, ...]) -> None:
    """OPTIONS that looks like a preflight passes without a key, and no operation runs, whatever body it brings."""
    body = '{"prompt":"x"}'
    answer = _ask(locked, "/generate", "Content-Type: application/json", *fields, method="OPTIONS", body=body)
    assert b"text" not in answer.body
    assert answer.status in (200, 400, 403)
    evil = answer.headers.get("access-control-allow-origin", [])
    assert evil in ([], ["https://app.example"])


@pytest.mark.parametrize("method", ["GET", "POST", "HEADX"])
def test_only_options_is_a_preflight(locked: Service, method: str) -> None:
    """The preflight's header on another method opens nothing."""
    answer = _ask(locked, "/models", "Access-Control-Request-Method: GET", "Origin: https://app.example", method=method)
    assert answer.status in (400, 401)


@pytest.mark.parametrize(
    "where",
    [
        ("/models?api_key={}", ()),
        ("/models?access_token={}", ()),
        ("/models?key={}", ("Authorization: Bearer",)),
        ("/models", ("Cookie: api_key={}",)),
        ("/models", ("Authorization: {}",)),
        ("/models", ("Authorization: Basic {}",)),
        ("/models", ("Authorization: Bearer {} {}",)),
        ("/models", ("Authorization: Bearer {},",)),
        ("/models", ("Authorization: Bearer\t{}x",)),
        ("/models", ("Proxy-Authorization: Bearer {}",)),
        ("/models", ("X-Api-Token: {}",)),
        ("/models", ("X_API_Key: {}",)),
        ("/models", ("Authorization: Bearer {}", "Authorization: Bearer {}x")),
        ("/models", ("Authorization: Bearer {}x", "X-API-Key: {}")),
    ],
)
def test_a_key_counts_only_where_it_belongs(locked: Service, where: tuple[str, tuple[str, ...]]) -> None:
    """Not in URLs, which are logged, nor in cookies, which browsers send by themselves; and never one of two."""
    target, fields = where
    assert _ask(locked, target.replace("{}", KEY), *(field.replace("{}", KEY) for field in fields)).status == 401
