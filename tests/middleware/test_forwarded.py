"""middleware.forwarded: under which scheme and authority a client called."""

from __future__ import annotations

from ipaddress import IPv6Address
from urllib.parse import urlsplit

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict

from middleware.forwarded import host_of, origin
from middleware.forwarded_header import SOURCES, Source
from middleware.request_keys import ORIGIN, Origin
from runtime.errors import InvalidRequest
from tests.support.soak import soak
from tests.support.wire import Echo, exchange, statuses

Fields = list[tuple[str, str]]
PROTO, HOST, FORWARDED = "X-Forwarded-Proto", "X-Forwarded-Host", "Forwarded"


def told(fields: Fields, source: Source = "x-forwarded-for", *, trusted: bool = True) -> Origin:
    """What is made of these headers on a plain connection to ``here``."""
    return origin(trusted, "http", "here", CIMultiDict(fields), source)


@pytest.mark.parametrize("source", SOURCES)
def test_strangers_are_not_believed(source: Source) -> None:
    """Whatever an untrusted peer says, junk too, the connection and the Host header are what counts."""
    fields = [(PROTO, "https"), (HOST, "evil"), (FORWARDED, "proto=https;host=evil"), (HOST, "@"), (FORWARDED, '"')]
    assert told(fields, source, trusted=False) == ("http", "here")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([], ("http", "here")),
        ([(PROTO, "https")], ("https", "here")),
        ([(PROTO, "HTTPS")], ("https", "here")),
        ([(HOST, "api.example")], ("http", "api.example")),
        ([(PROTO, "https"), (HOST, "API.example:8443")], ("https", "api.example:8443")),
        ([(HOST, "[2001:db8::1]:443")], ("http", "[2001:db8::1]:443")),
        ([(HOST, "api.example:")], ("http", "api.example")),
        ([(PROTO, ""), (HOST, " ")], ("http", "here")),
        ([(PROTO, "http, https")], ("https", "here")),
        ([(PROTO, "javascript,https")], ("https", "here")),
        ([(PROTO, "http"), (PROTO, "https")], ("https", "here")),
        ([(HOST, "evil, api.example")], ("http", "api.example")),
        ([(FORWARDED, "proto=https;host=evil")], ("http", "here")),
    ],
)
@pytest.mark.parametrize("source", ["x-forwarded-for", "x-real-ip"])
def test_a_trusted_proxy_is_believed(fields: Fields, expected: tuple[str, str], source: Source) -> None:
    """One value as it is, of several the rightmost; blank is absent; Forwarded is no fallback."""
    assert told(fields, source) == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([], ("http", "here")),
        ([(FORWARDED, "for=1.2.3.4;proto=https;host=api.example")], ("https", "api.example")),
        ([(FORWARDED, 'Proto=HTTPS;Host="API.example:8443"')], ("https", "api.example:8443")),
        ([(FORWARDED, 'host="[2001:db8::1]"')], ("http", "[2001:db8::1]")),
        ([(FORWARDED, "proto=https;host=evil, proto=http;host=api.example")], ("http", "api.example")),
        ([(FORWARDED, 'host=evil;by="a,b", host=api.example')], ("http", "api.example")),
        ([(FORWARDED, "host=evil"), (FORWARDED, "proto=https")], ("https", "here")),
        ([(FORWARDED, "proto=https, for=1.2.3.4")], ("http", "here")),
        ([(FORWARDED, " ")], ("http", "here")),
        ([(PROTO, "https"), (HOST, "evil")], ("http", "here")),
    ],
)
def test_forwarded(fields: Fields, expected: tuple[str, str]) -> None:
    """The same from RFC 7239's header: its rightmost element, and no fallback to the others."""
    assert told(fields, "forwarded") == expected


JUNK = [
    "a b",
    "a@b",
    "a/b",
    "a\\b",
    "a\tb",
    "\x00",
    "a\x7f",
    "ä",
    "[::1",
    "[::g]",
    "[1.2.3.4]",
    "a:65536",
    "a:x",
    ":1",
    "a:1:2",
]


@pytest.mark.parametrize("junk", [*JUNK, "a" * 256])
def test_junk_hosts(junk: str) -> None:
    """What must be read and is no host is refused, in each header, and its name is told."""
    with pytest.raises(InvalidRequest, match=r"^X-Forwarded-Host: "):
        told([(HOST, junk)])
    with pytest.raises(InvalidRequest, match=r"^Forwarded: "):
        told([(FORWARDED, f"host={junk}")], "forwarded")
    with pytest.raises(InvalidRequest, match=r"^Host: "):
        origin(False, "http", junk, CIMultiDict(), "forwarded")


@pytest.mark.parametrize("junk", ["ftp", "https:", "https/1.1", "on", "h ttps", "https,", "wss", "\u017fhttp"])
def test_junk_schemes(junk: str) -> None:
    """Only http and https are schemes here."""
    with pytest.raises(InvalidRequest, match=r"^X-Forwarded-Proto: "):
        told([(PROTO, junk)])


@pytest.mark.parametrize(
    "junk", ["proto", "proto=https;proto=http", "proto=https;;=", "a b=c", 'host="x', "proto=https\x01", "x" * 9000]
)
def test_junk_elements(junk: str) -> None:
    """A Forwarded header that is malformed, or too long to read, is refused whole."""
    with pytest.raises(InvalidRequest, match=r"^Forwarded: "):
        told([(FORWARDED, junk)], "forwarded")


@pytest.mark.parametrize(("lines", "required", "host"), [(["x"], True, "x"), (["x"], False, "x"), ([], False, "")])
def test_host(lines: list[str], required: bool, host: str) -> None:
    """Exactly one, or none where none is required."""
    assert host_of(lines, required=required) == host


@pytest.mark.parametrize(("lines", "required"), [([], True), ([""], True), ([""], False), (["x", "x"], False)])
def test_no_host(lines: list[str], required: bool) -> None:
    """None, an empty one or two are refused (RFC 9112 section 3.2)."""
    with pytest.raises(InvalidRequest, match=r"^Host: "):
        host_of(lines, required=required)


@pytest.mark.parametrize(
    ("settings_", "expected"),
    [
        ({}, ("http", "here")),
        ({"forwarded_origin": True}, ("http", "here")),
        ({"trusted_proxies": "127.0.0.1"}, ("http", "here")),
        ({"trusted_proxies": "127.0.0.1", "forwarded_origin": True}, ("https", "api.example")),
        ({"trusted_proxies": "10.0.0.1", "forwarded_origin": True}, ("http", "here")),
    ],
)
async def test_the_setting(settings_: dict[str, object], expected: tuple[str, str]) -> None:
    """It takes both: the setting, and a peer that is trusted."""
    echo = Echo(**settings_)
    raw = b"GET / HTTP/1.1\r\nHost: Here\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: api.example\r\n"
    async with echo.listening() as port:
        assert statuses(await exchange(port, raw + b"Connection: close\r\n\r\n")) == [200]
    assert echo.requests[0][ORIGIN] == expected


@pytest.mark.parametrize("junk", [b"a@b", b"a b", b"a,b", b"a/b", b"", b"[::g]", b"x:99999"])
async def test_a_malformed_host(junk: bytes) -> None:
    """400 in the standard shape on every path, before any handler."""
    echo = Echo()
    async with echo.listening() as port:
        answer = await exchange(port, b"GET / HTTP/1.1\r\nConnection: close\r\nHost: " + junk + b"\r\n\r\n")
    assert statuses(answer) == [400]
    assert b"Host: " in answer
    assert echo.seen == []


async def test_http_1_0_needs_no_host() -> None:
    """As health checks of some load balancers send it."""
    echo = Echo()
    async with echo.listening() as port:
        assert statuses(await exchange(port, b"GET / HTTP/1.0\r\n\r\n")) == [200]
    assert echo.requests[0][ORIGIN] == ("http", "")


TEXT = st.text(st.sampled_from('aZ0.-_~:[]@/%, ;="\\\t\x00é'), max_size=40) | st.text(max_size=40)


@settings(max_examples=soak(10_000))
@given(TEXT)
@example("[::1]:80")
def test_any_host(text: str) -> None:
    """Any text is refused, or a host that urllib reads the same way, without a user, a path or anything hidden."""
    try:
        found = origin(False, "http", text, CIMultiDict(), "forwarded").authority
    except InvalidRequest:
        return
    split = urlsplit(f"http://{found}/")
    assert split.netloc == found == text.lower().removesuffix(":")
    assert (split.path, split.query, split.fragment, split.username) == ("/", "", "", None)
    assert split.port is None or 0 <= split.port <= 65_535
    if found.startswith("["):
        assert str(IPv6Address(split.hostname or ""))


PAIRS = st.lists(
    st.tuples(st.sampled_from(["proto", "host", "for", "by", ""]), st.sampled_from(["https", "a.b", '"x,y"', "", "é"])),
    max_size=6,
)
LINES = TEXT | PAIRS.map(lambda pairs: ",".join(f"{name}={value}" for name, value in pairs))


@settings(max_examples=soak(10_000))
@given(st.lists(LINES, max_size=3), st.sampled_from(SOURCES))
def test_any_header(lines: list[str], source: Source) -> None:
    """Any lines end in an origin of this service's shape or in the one error, and nothing to the left matters."""
    fields = [(name, line) for line in lines for name in (PROTO, HOST, FORWARDED)]
    try:
        found = told(fields, source)
    except InvalidRequest:
        return
    assert found.scheme in ("http", "https")
    assert urlsplit(f"http://{found.authority}/").netloc == found.authority
    if lines and lines[-1].strip(" \t"):
        assert told([(name, "evil") for name in (PROTO, HOST)] + fields[-3:], source) == found
