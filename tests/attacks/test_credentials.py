"""Guessed keys, and signatures that are replayed, tampered with or made up."""

from __future__ import annotations

import re
import time

import pytest

from loadtests.service import Service
from runtime.keys.records import new_key
from runtime.signatures.client import Signer
from tests.attacks.conftest import Start, log_lines
from tests.attacks.keys import KEY, SECRET, SIGNING_ID, record, signing_record
from tests.attacks.raw import Answer, exchange

BODY = b'{"prompt": 1}'  # wrong in a way that is found behind the signature: 400
Fields = dict[str, str]


def _send(
    service: Service, method: str, target: str, fields: Fields, body: bytes = b"", source: str = "127.0.0.1"
) -> Answer:
    length = [f"Content-Length: {len(body)}", "Content-Type: application/json"] if body else []
    lines = [f"{name}: {value}" for name, value in fields.items()]
    host = [] if any(name.lower() == "host" for name in fields) else [f"Host: 127.0.0.1:{service.port}"]
    head = "\r\n".join([f"{method} {target} HTTP/1.1", *host, "Connection: close", *length, *lines, "", ""])
    (answer,) = exchange(service.port, head.encode() + body, source=source).answers
    return answer


# Keys


def test_guessing_soon_meets_429(start: Start) -> None:
    """From one address; another is not held up by it, and neither is whoever there has a good key."""
    service = start(API_KEYS=record(KEY), AUTH_FAILURES_PER_MINUTE="10")
    guesses = [_send(service, "GET", "/models", {"Authorization": f"Bearer {new_key()}"}) for _ in range(30)]
    statuses = [answer.status for answer in guesses]
    assert set(statuses) == {401, 429}
    assert statuses.count(401) <= 11  # ten a minute, and one that was paid off meanwhile
    assert int(guesses[-1].header("retry-after") or 0) > 0
    assert _send(service, "GET", "/models", {"X-API-Key": KEY}).status == 200
    assert _send(service, "GET", "/models", {"X-API-Key": new_key()}, source="127.0.0.7").status == 401
    told = [line for line in log_lines(service, "warmstart.edge") if "credential" in line["message"]]
    assert len(told) < 20  # a flood of guesses is no flood of lines
    assert KEY not in service.log.read_text()


def test_a_spoofed_address_buys_no_more_guesses(start: Start) -> None:
    """Another X-Forwarded-For each time is still the same address."""
    service = start(API_KEYS=record(KEY), AUTH_FAILURES_PER_MINUTE="10", TRUSTED_PROXIES="127.0.0.9")
    statuses = [
        _send(
            service,
            "GET",
            "/models",
            {"X-API-Key": new_key(), "X-Forwarded-For": f"10.0.0.{number}", "Forwarded": f"for=10.1.0.{number}"},
        ).status
        for number in range(30)
    ]
    assert statuses[-1] == 429


NEARLY = {
    "cut": KEY[:-1],
    "longer": KEY + "x",
    "other case": KEY.swapcase(),
    "backwards": KEY[:4] + KEY[:3:-1],
    "other prefix": f"x{KEY[1:]}",
    "other sign": KEY.replace("_", "-"),
    "prefix alone": "wsk_",
    "wildcard": "*",
    "null": "null",
    "SQL": "' OR 1=1 --",
    "not ASCII": "é" * 20,
    "long": "x" * 8000,
}


@pytest.mark.parametrize("name", NEARLY)
def test_nearly_a_key_is_none(start: Start, name: str) -> None:
    """Every wrong key gets the same answer, which tells nothing of how wrong it was."""
    service = start(API_KEYS=record(KEY), AUTH_FAILURES_PER_MINUTE="1000000")
    answer = _send(service, "GET", "/models", {"Authorization": f"Bearer {NEARLY[name]}"})
    other = _send(service, "GET", "/models", {"Authorization": f"Bearer {new_key()}"})
    assert answer.status == other.status == 401
    assert answer.body == other.body
    assert answer.header("www-authenticate") == other.header("www-authenticate")


def test_the_stored_hash_is_no_key(start: Start) -> None:
    """Who has read the keys' file cannot call with what stands in it."""
    from hashlib import sha256

    service = start(API_KEYS=record(KEY), AUTH_FAILURES_PER_MINUTE="1000000")
    for stored in (sha256(KEY.encode()).hexdigest(), "k_one", "attacks"):
        assert _send(service, "GET", "/models", {"X-API-Key": stored}).status == 401


# Signatures


@pytest.fixture(scope="module")
def signed(start: Start) -> Service:
    """Nothing goes without a signature."""
    return start(API_KEYS=signing_record(), REQUEST_SIGNING="required", AUTH_FAILURES_PER_MINUTE="1000000")


def _sign(
    service: Service, method: str = "POST", target: str = "/generate?a=1", body: bytes = BODY, **more: object
) -> Fields:
    signer = Signer(SIGNING_ID, SECRET, **more)  # type: ignore[arg-type]
    return signer.headers(method, f"http://127.0.0.1:{service.port}{target}", body)


def test_a_good_signature_is_good_once(signed: Service) -> None:
    """Then it is refused, from whatever address and over whatever connection."""
    fields = _sign(signed)
    assert _send(signed, "POST", "/generate?a=1", fields, BODY).status == 400  # the operation's own refusal
    for source in ("127.0.0.1", "127.0.0.8"):
        again = _send(signed, "POST", "/generate?a=1", fields, BODY, source)
        assert (again.status, b"invalid_signature" in again.body) == (401, True)


def test_many_replays_at_once_pass_once(signed: Service) -> None:
    """Twenty copies in one packet: one is served."""
    fields = _sign(signed, "GET", "/models", b"")
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    one = f"GET /models HTTP/1.1\r\nHost: 127.0.0.1:{signed.port}\r\n{lines}\r\n".encode()
    answered = exchange(signed.port, one * 20, answers=20)
    assert sorted(answered.statuses) == [200] + [401] * 19


def _without(fields: Fields, name: str) -> Fields:
    return {key: value for key, value in fields.items() if key != name}


def _edited(fields: Fields, pattern: str, to: str, name: str = "Signature-Input") -> Fields:
    edited = re.sub(pattern, to, fields[name])
    assert edited != fields[name], "the attack must change something"
    return fields | {name: edited}


TAMPERED = {
    "method": lambda f: ("PUT", "/generate?a=1", f, BODY),
    "path": lambda f: ("POST", "/complete?a=1", f, BODY),
    "path, encoded": lambda f: ("POST", "/%67enerate?a=1", f, BODY),
    "path, slashes": lambda f: ("POST", "//generate?a=1", f, BODY),
    "query": lambda f: ("POST", "/generate?a=2", f, BODY),
    "query gone": lambda f: ("POST", "/generate", f, BODY),
    "query more": lambda f: ("POST", "/generate?a=1&", f, BODY),
    "body": lambda f: ("POST", "/generate?a=1", f, BODY.replace(b"1", b"2")),
    "body gone": lambda f: ("POST", "/generate?a=1", f, b""),
    "body longer": lambda f: ("POST", "/generate?a=1", f, BODY + b" "),
    "host": lambda f: ("POST", "/generate?a=1", f | {"Host": "other.example"}, BODY),
    "forwarded host": lambda f: ("POST", "/generate?a=1", f | {"Host": "evil", "X-Forwarded-Host": "127.0.0.1"}, BODY),
    "digest gone": lambda f: ("POST", "/generate?a=1", _without(f, "Content-Digest"), BODY),
    "digest of another body": lambda f: (
        "POST",
        "/generate?a=1",
        f | {"Content-Digest": "sha-256=:" + "A" * 43 + "=:"},
        BODY,
    ),
    "digest, other case": lambda f: (
        "POST",
        "/generate?a=1",
        f | {"Content-Digest": f["Content-Digest"].upper()},
        BODY,
    ),
    "signature gone": lambda f: ("POST", "/generate?a=1", _without(f, "Signature"), BODY),
    "input gone": lambda f: ("POST", "/generate?a=1", _without(f, "Signature-Input"), BODY),
    "all gone": lambda f: ("POST", "/generate?a=1", {}, BODY),
    "MAC": lambda f: ("POST", "/generate?a=1", _edited(f, ":..", ":AA", "Signature"), BODY),
    "MAC cut": lambda f: ("POST", "/generate?a=1", f | {"Signature": "sig=:AAAA:"}, BODY),
    "MAC empty": lambda f: ("POST", "/generate?a=1", f | {"Signature": "sig=::"}, BODY),
    "MAC no base64": lambda f: ("POST", "/generate?a=1", f | {"Signature": "sig=:!!!!:"}, BODY),
    "MAC no bytes": lambda f: ("POST", "/generate?a=1", f | {"Signature": "sig=1"}, BODY),
    "label": lambda f: ("POST", "/generate?a=1", _edited(f, "^sig", "gis", "Signature"), BODY),
    "two signatures": lambda f: ("POST", "/generate?a=1", f | {"Signature": f["Signature"] + ", b=:AAAA:"}, BODY),
    "later expiry": lambda f: (
        "POST",
        "/generate?a=1",
        _edited(f, r"expires=\d+", f"expires={int(time.time()) + 250}"),
        BODY,
    ),
    "no expiry": lambda f: ("POST", "/generate?a=1", _edited(f, r";expires=\d+", ""), BODY),
    "other nonce": lambda f: ("POST", "/generate?a=1", _edited(f, 'nonce="..', 'nonce="AA'), BODY),
    "no nonce": lambda f: ("POST", "/generate?a=1", _edited(f, ';nonce="[^"]*"', ""), BODY),
    "other key": lambda f: ("POST", "/generate?a=1", _edited(f, 'keyid="[^"]*"', 'keyid="k_one"'), BODY),
    "other algorithm": lambda f: ("POST", "/generate?a=1", _edited(f, "hmac-sha256", "rsa-v1_5-sha256"), BODY),
    "algorithm none": lambda f: ("POST", "/generate?a=1", _edited(f, "hmac-sha256", "none"), BODY),
    "less covered": lambda f: ("POST", "/generate?a=1", _edited(f, ' "@path"', ""), BODY),
    "body not covered": lambda f: ("POST", "/generate?a=1", _edited(f, ' "content-digest"', ""), BODY),
    "nothing covered": lambda f: ("POST", "/generate?a=1", _edited(f, r"\([^)]*\)", "()"), BODY),
    "covered twice": lambda f: ("POST", "/generate?a=1", _edited(f, '"@path"', '"@path" "@path"'), BODY),
    "unknown component": lambda f: ("POST", "/generate?a=1", _edited(f, '"@path"', '"@path" "@evil"'), BODY),
    "not ASCII": lambda f: ("POST", "/generate?a=1", _edited(f, "warmstart", "wärmstart"), BODY),
    "no end": lambda f: ("POST", "/generate?a=1", f | {"Signature-Input": 'sig=("@path"'}, BODY),
    "very long": lambda f: ("POST", "/generate?a=1", f | {"Signature-Input": "sig=(" + '"@path" ' * 900 + ")"}, BODY),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_tampered_signatures_are_refused(signed: Service, name: str) -> None:
    """401 with a challenge, whatever part was changed, left out or made up; never 500."""
    method, target, fields, body = TAMPERED[name](_sign(signed))
    answer = _send(signed, method, target, fields, body)
    assert answer.status == 401
    assert "www-authenticate" in answer.headers


def test_a_tampered_copy_does_not_use_up_the_original(signed: Service) -> None:
    """The nonce is noted only once the signature is found good, so nobody can spoil another's request."""
    fields = _sign(signed)
    assert _send(signed, "POST", "/generate?a=2", fields, BODY).status == 401
    assert _send(signed, "POST", "/generate?a=1", fields, BODY).status == 400


@pytest.mark.parametrize("shift", [-400, -100, 60, 10_000_000])
def test_signatures_of_another_time_are_refused(signed: Service, shift: int) -> None:
    """Too old, run out, or from a future that a clock's error does not explain."""
    fields = _sign(signed, clock=lambda: time.time() + shift)
    assert _send(signed, "POST", "/generate?a=1", fields, BODY).status == 401


def test_a_signature_for_one_service_is_none_for_another(start: Start) -> None:
    """With SIGNING_AUTHORITY pinned, one that names another host is refused, even if the Host header agrees with it."""
    service = start(API_KEYS=signing_record(), REQUEST_SIGNING="required", SIGNING_AUTHORITY="api.example")
    signer = Signer(SIGNING_ID, SECRET)
    for host, status in (("other.example", 401), ("api.example", 200)):
        fields = signer.headers("GET", f"http://{host}/models")
        assert _send(service, "GET", "/models", fields | {"Host": host}).status == status
