"""Clients that lie about who they are: nothing a request says about its address, scheme or host is believed."""

from __future__ import annotations

import pytest

from loadtests.service import Service
from tests.attacks.conftest import Start
from tests.attacks.raw import Answer, exchange

INSIDE, OUTSIDE, PROXY = "127.0.0.5", "127.0.0.6", "127.0.0.9"

_TEXT = """X-Forwarded-For X-Real-IP X-Client-IP Client-IP True-Client-IP CF-Connecting-IP CF-Connecting-IPv6
    Fastly-Client-IP X-Cluster-Client-IP X-Forwarded Forwarded-For X-Originating-IP X-Remote-IP X-Remote-Addr
    X-ProxyUser-IP X-Azure-ClientIP X-Azure-SocketIP X-Envoy-External-Address X-Appengine-User-IP Fly-Client-IP
    X-Original-Forwarded-For X-Host X-Custom-IP-Authorization X-Forwarded-By Via WL-Proxy-Client-IP Proxy-Client-IP
    REMOTE_ADDR HTTP_X_FORWARDED_FOR X_Forwarded_For x-forwarded-for Remote-Addr From Host"""
_NAMES = _TEXT.split()
_FORMS = [
    INSIDE,
    f"{INSIDE}:80",
    f"::ffff:{INSIDE}",
    f"[::ffff:{INSIDE}]:80",
    f'"{INSIDE}"',
    f"{INSIDE}, {INSIDE}",
    "::1",
]
SPOOFS = [f"{name}: {INSIDE}" for name in _NAMES] + [
    *(f"X-Forwarded-For: {form}" for form in _FORMS),
    f"X-Forwarded-For: {INSIDE}\r\nX-Forwarded-For: {INSIDE}",
    f"X-Forwarded-For: {OUTSIDE}\r\nX-Forwarded-For: {INSIDE}",
    f"X-Forwarded-For: {INSIDE}\r\nX-Real-IP: {INSIDE}\r\nForwarded: for={INSIDE}",
    f"Forwarded: for={INSIDE}",
    f'Forwarded: for="{INSIDE}:80";by={PROXY};proto=https',
    f'Forwarded: for="[::ffff:{INSIDE}]"',
    f"Forwarded: for={INSIDE}, for={INSIDE}",
    "Forwarded: for=_hidden",
    "X-Forwarded-For: unknown",
    "X-Forwarded-For:",
    "X-Forwarded-For: " + f"{INSIDE}, " * 300 + INSIDE,
]
_IDS = [spoof.replace("\r\n", " | ")[:60] for spoof in SPOOFS]


def _get(service: Service, source: str, *fields: str, target: str = "/models") -> Answer:
    lines = [f"GET {target} HTTP/1.1", *([] if any(f.startswith("Host:") for f in fields) else ["Host: x"])]
    raw = "\r\n".join([*lines, *fields, "Connection: close", "", ""]).encode()
    (answer,) = exchange(service.port, raw, source=source).answers
    return answer


@pytest.mark.parametrize("spoof", SPOOFS, ids=_IDS)
def test_strangers_cannot_choose_their_address(start: Start, spoof: str) -> None:
    """Whichever header trusted proxies use, one from anybody else lets nobody in, and puts nobody out."""
    for header in ("x-forwarded-for", "x-real-ip", "forwarded"):
        service = start(ALLOWED_IPS=INSIDE, TRUSTED_PROXIES=PROXY, CLIENT_IP_HEADER=header)
        denied = _get(service, OUTSIDE, spoof)
        assert (denied.status, b"client_address_denied" in denied.body) == (403, True), header
        assert _get(service, INSIDE, spoof.replace(INSIDE, OUTSIDE)).status == 200, header


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (INSIDE, 200),
        (f"{INSIDE}:80", 200),
        (f"::ffff:{INSIDE}", 200),
        (f"{OUTSIDE}, {INSIDE}", 200),
        (f"evil, {INSIDE}", 200),
        (OUTSIDE, 403),
        (f"{INSIDE}, {OUTSIDE}", 403),
        (f"{INSIDE}, {OUTSIDE}, {PROXY}", 403),
        (f"{INSIDE}, unknown", 403),
        (f"{INSIDE},", 403),
        (f"{INSIDE} ,\t_hidden", 403),
        (f"{INSIDE}, 127.0.0.05", 403),
        (f"{INSIDE}, 127.5", 403),
        (f"{INSIDE}, 0.0.0.0", 403),
        (f"{INSIDE}\r\nX-Forwarded-For: {OUTSIDE}", 403),
        (f"{OUTSIDE}\r\nX-Forwarded-For: {INSIDE}", 200),
    ],
)
def test_through_a_proxy_only_what_it_added_counts(start: Start, said: str, status: int) -> None:
    """Walked from the right: what stands left of the proxy's own entry was written by the client, and is not read."""
    service = start(ALLOWED_IPS=INSIDE, TRUSTED_PROXIES=PROXY, CLIENT_IP_HEADER="x-forwarded-for")
    assert _get(service, PROXY, f"X-Forwarded-For: {said}").status == status


@pytest.mark.parametrize(
    "line",
    [
        f"PROXY TCP4 {INSIDE} 127.0.0.1 1000 80\r\n".encode(),
        b"PROXY UNKNOWN\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x7f\0\0\x05\x7f\0\0\x01\x03\xe8\0\x50",
        b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0",
    ],
    ids=["v1", "v1 unknown", "v2", "v2 local"],
)
@pytest.mark.parametrize("expected", ["true", "false"])
def test_strangers_cannot_speak_the_proxy_protocol(start: Start, line: bytes, expected: str) -> None:
    """A PROXY header from a peer that is no trusted proxy gets nobody in, whether the protocol is on or not."""
    service = start(ALLOWED_IPS=INSIDE, TRUSTED_PROXIES=PROXY, PROXY_PROTOCOL=expected, CLIENT_IP_HEADER="x-real-ip")
    request = b"GET /models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answered = exchange(service.port, line + request, source=OUTSIDE)
    assert answered.closed
    assert set(answered.statuses) <= {400, 403}


_SCHEMES = [
    "X-Forwarded-Proto: https",
    "X-Forwarded-Proto: https\r\nX-Forwarded-Host: bank.example",
    "X-Forwarded-Protocol: https",
    "X-Forwarded-Ssl: on",
    "X-Forwarded-Scheme: https",
    "X-Url-Scheme: https",
    "Front-End-Https: on",
    "Forwarded: proto=https;host=bank.example",
]


@pytest.mark.parametrize("spoof", _SCHEMES)
@pytest.mark.parametrize("believe", ["true", "false"])
def test_strangers_cannot_choose_their_scheme(start: Start, spoof: str, believe: str) -> None:
    """No answer over plain TCP tells a browser to insist on TLS because a stranger claims to have used it."""
    service = start(TRUSTED_PROXIES=PROXY, FORWARDED_ORIGIN=believe)
    answer = _get(service, OUTSIDE, spoof)
    assert answer.status == 200
    assert "strict-transport-security" not in answer.headers


def test_a_trusted_proxy_is_believed(start: Start) -> None:
    """The control to the above: the same words of a trusted proxy count, if the setting says so."""
    spoof = _SCHEMES[0]
    assert (
        "strict-transport-security" in _get(start(TRUSTED_PROXIES=PROXY, FORWARDED_ORIGIN="true"), PROXY, spoof).headers
    )
    assert (
        "strict-transport-security"
        not in _get(start(TRUSTED_PROXIES=PROXY, FORWARDED_ORIGIN="false"), PROXY, spoof).headers
    )
