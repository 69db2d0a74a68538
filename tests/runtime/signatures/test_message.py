"""runtime.signatures.message: the RFC's own examples, and what is no signature."""

from __future__ import annotations

import base64
from base64 import b64encode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.signatures import SignatureError
from runtime.signatures.message import (
    SignedMessage,
    mac_of,
    normalised,
    prepared_mac,
    read_signature,
    signature_base,
    signature_text,
)
from runtime.signatures.structured_fields import MAX_MEMBERS
from tests.support.signed import message
from tests.support.soak import soak

# RFC 9421 appendix B.1.5 and the request of appendix B.2.
SHARED_SECRET = base64.b64decode(
    "uzvJfB4u3N0Jy4T7NZ75MDVcr8zSTInedJtkgcu46YW4XByzNJjxBdtjUkdJPBtbmHhIDi6pcl8jsasjlTMtDQ=="
)
SHA512 = "sha-512=:WZDPaVn/7XgHaAy8pmojAkGWoRx2UFChF41A2svX+TaPm+AbwAgBWnrIiYllu7BNNyealdVLvRwEmTHWXvJwew==:"
REQUEST = message(
    "POST",
    "/foo?param=Value&Pet=dog",
    fields={
        "Host": "example.com",
        "Date": "Tue, 20 Apr 2021 02:07:55 GMT",
        "Content-Type": "application/json",
        "Content-Digest": SHA512,
        "Content-Length": "18",
    },
)
MAC = b64encode(bytes(32)).decode()


def _values(request: SignedMessage, *components: str) -> list[str]:
    lines = signature_base(request, components, "()").decode().split("\n")
    assert lines[-1] == '"@signature-params": ()'
    return [line.removeprefix(f'"{name}": ') for line, name in zip(lines[:-1], components, strict=True)]


def test_appendix_b_2_5() -> None:
    """RFC 9421 appendix B.2.5, byte for byte: base, parameters and HMAC."""
    text = '("date" "@authority" "content-type");created=1618884473;keyid="test-shared-secret"'
    read = read_signature([f"sig-b25={text}"], ["sig-b25=:pxcQw6G3AjtMBQjwo8XzkZf/bws5LelbaMk5rGIGtE8=:"])
    assert read.text == text == signature_text(read.components, read.params)
    base = signature_base(REQUEST, read.components, read.text)
    assert base == (
        b'"date": Tue, 20 Apr 2021 02:07:55 GMT\n'
        b'"@authority": example.com\n'
        b'"content-type": application/json\n'
        b'"@signature-params": ("date" "@authority" "content-type");created=1618884473;keyid="test-shared-secret"'
    )
    assert mac_of(base, SHARED_SECRET) == read.mac


@given(st.binary(max_size=200), st.lists(st.binary(max_size=200), max_size=3))
def test_prepared_mac(secret: bytes, bases: list[bytes]) -> None:
    """The HMAC that is made ready once is the standard library's, for secrets of any length and time after time."""
    prepared = prepared_mac(secret)
    assert [prepared(base) for base in bases] == [mac_of(base, secret) for base in bases]


def test_section_2_5() -> None:
    """RFC 9421 section 2.5's example of a base."""
    text = (
        '("@method" "@authority" "@path" "content-digest" "content-length" "content-type")'
        ';created=1618884473;keyid="test-key-rsa-pss"'
    )
    read = read_signature([f"sig1={text}"], [f"sig1=:{MAC}:"])
    assert signature_base(REQUEST, read.components, read.text).decode() == (
        '"@method": POST\n'
        '"@authority": example.com\n'
        '"@path": /foo\n'
        f'"content-digest": {SHA512}\n'
        '"content-length": 18\n'
        '"content-type": application/json\n'
        f'"@signature-params": {text}'
    )


def test_section_2_1() -> None:
    """RFC 9421 section 2.1's examples of header fields: trimmed, joined, and otherwise as they are."""
    request = message(
        fields=[
            ("Host", "www.example.com"),
            ("X-OWS-Header", "  Leading and trailing whitespace.   "),
            ("Cache-Control", "max-age=60"),
            ("Cache-Control", "    must-revalidate"),
            ("Example-Dict", " a=1,    b=2;x=1;y=2,   c=(a   b   c)"),
            ("X-Empty-Header", ""),
        ]
    )
    assert _values(request, "host", "x-ows-header", "cache-control", "example-dict", "x-empty-header") == [
        "www.example.com",
        "Leading and trailing whitespace.",
        "max-age=60, must-revalidate",
        "a=1,    b=2;x=1;y=2,   c=(a   b   c)",
        "",
    ]


TARGETS = [
    ("/path?param=value", "/path", "?param=value", "http://www.example.com/path?param=value"),
    ("/path", "/path", "?", "http://www.example.com/path"),
    ("/path?", "/path", "?", "http://www.example.com/path?"),
    ("/path?queryString", "/path", "?queryString", "http://www.example.com/path?queryString"),
    ("/path?param=value&foo=bar&baz=bat%2Dman", "/path", "?param=value&foo=bar&baz=bat%2Dman", None),
    ("/models/a%2Fb/load", "/models/a%2Fb/load", "?", None),
    ("/a?b?c=/d", "/a", "?b?c=/d", None),
    ("/a?x=1&x=2&y=+%20", "/a", "?x=1&x=2&y=+%20", None),
    ("//a//b", "//a//b", "?", None),
    ("/../a/./b", "/../a/./b", "?", None),
    ("*", "/", "?", "http://www.example.com"),
    ("http://www.example.com/path?param=value", "/path", "?param=value", "http://www.example.com/path?param=value"),
    ("http://WWW.example.com:80", "/", "?", "http://www.example.com/"),
    ("http://www.example.com?a", "/", "?a", "http://www.example.com/?a"),
]


@pytest.mark.parametrize(("target", "path", "query", "uri"), TARGETS)
def test_derived_from_the_target(target: str, path: str, query: str, uri: str | None) -> None:
    """RFC 9421 sections 2.2.2 and 2.2.5 to 2.2.7, for all forms of a target: as sent, nothing decoded."""
    request = message("OPTIONS" if target == "*" else "GET", target, authority="www.example.com")
    found = _values(request, "@path", "@query", "@target-uri", "@request-target", "@scheme", "@method", "@authority")
    assert found == [
        path,
        query,
        uri or f"http://www.example.com{target}",
        target,
        "http",
        request.method,
        "www.example.com",
    ]


@pytest.mark.parametrize(
    ("authority", "scheme", "found"),
    [
        ("www.example.com", "http", "www.example.com"),
        ("WWW.Example.COM:80", "http", "www.example.com"),
        ("example.com:443", "https", "example.com"),
        ("example.com:443", "http", "example.com:443"),
        ("example.com:8080", "http", "example.com:8080"),
        ("example.com:180", "http", "example.com:180"),
        ("example.com:", "http", "example.com"),
        ("[::1]:80", "http", "[::1]"),
        ("[2001:DB8::80]", "http", "[2001:db8::80]"),
    ],
)
def test_authority(authority: str, scheme: str, found: str) -> None:
    """RFC 9421 section 2.2.3: small letters, and no port that goes without saying."""
    assert normalised(authority, scheme) == found


@pytest.mark.parametrize(
    ("request_", "component", "said"),
    [
        (message(), "@status", "a request has no component"),
        (message(), "@query-param", "a request has no component"),
        (message(), "@signature-params", "a request has no component"),
        (message(), "@METHOD", "a request has no component"),
        (message(), "@", "a request has no component"),
        (message(fields={"X-A": "1"}), "X-A", "a request has no component"),
        (message(), "x-a", "is missing"),
        (message(), "", "is missing"),
        (message(fields={"x-a": "é"}), "x-a", "not ASCII"),
        (message(fields={"x-a": "1\n"}), "x-a", "line breaks"),
        (message(fields={"x-a": "1\r2"}), "x-a", "line breaks"),
        (message(target="/é"), "@path", "not ASCII"),
        (message(target="/\udcff"), "@path", "not ASCII"),
        (message(target="/a#b"), "@path", "fragment"),
        (message(target=""), "@path", "form"),
        (message("CONNECT", "example.com:80"), "@path", "form"),
        (message(target="http://other.example/"), "@path", "different authorities"),
        (message(target="http://example.com:81/"), "@path", "different authorities"),
        (message(target="http://me@example.com/"), "@path", "different authorities"),
    ],
)
def test_cannot_be_signed(request_: SignedMessage, component: str, said: str) -> None:
    """Components that are unknown, not there or ambiguous: an error that says so."""
    with pytest.raises(SignatureError, match=said):
        signature_base(request_, ["@method", component], "()")


@pytest.mark.parametrize(
    ("inputs", "signatures", "said"),
    [
        ([], [f"a=:{MAC}:"], "both"),
        (["a=()"], [], "both"),
        ([""], [""], "one signature"),
        (["a=()"], [f"b=:{MAC}:"], "same label"),
        (['a=("x");created=1'], [f"b=:{MAC}:"], "same label"),
        (["a=(), b=()"], [f"a=:{MAC}:, b=:{MAC}:"], "one signature"),
        (["a=()", "b=()"], [f"a=:{MAC}:", f"b=:{MAC}:"], "one signature"),
        (["a=(), b=()"], [f"a=:{MAC}:"], "one signature"),
        (["a=()"], [f"a=:{MAC}:, b=:{MAC}:"], "one signature"),
        (["a=()", "a=()"], [f"a=:{MAC}:"], "'a' twice"),
        (["a=()"], [f"a=:{MAC}:", f"a=:{MAC}:"], "'a' twice"),
        (['a="x"'], [f"a=:{MAC}:"], "parentheses"),
        (["a"], [f"a=:{MAC}:"], "parentheses"),
        (["a=()"], ["a"], "between colons"),
        (["a=()"], [f'a="{MAC}"'], "between colons"),
        (["a=()"], [f"a=(:{MAC}:)"], "between colons"),
        (["a=()"], [f"a=:{MAC}:;x"], "between colons"),
        (["a=()"], ["a=:not base64!:"], "cannot be read"),
        (["a=()"], ["a=:YQ=:"], "not base64"),
        (["a=()"], [f"a=:{MAC}"], "cannot be read"),
        (["a=(x)"], [f"a=:{MAC}:"], "double quotes"),
        (["a=(1)"], [f"a=:{MAC}:"], "double quotes"),
        (["a=(?1)"], [f"a=:{MAC}:"], "double quotes"),
        (["a=(:YQ==:)"], [f"a=:{MAC}:"], "double quotes"),
        (['a=("x";sf)'], [f"a=:{MAC}:"], "parameters of a component"),
        (['a=("x";key="a")'], [f"a=:{MAC}:"], "parameters of a component"),
        (['a=("x";bs "y")'], [f"a=:{MAC}:"], "parameters of a component"),
        (['a=("@method";req)'], [f"a=:{MAC}:"], "parameters of a component"),
        (['a=("x";tr)'], [f"a=:{MAC}:"], "parameters of a component"),
        (['a=("@query-param";name="x")'], [f"a=:{MAC}:"], "parameters of a component"),
        (['a=("x" "x")'], [f"a=:{MAC}:"], "covered twice"),
        (['a=("x");created=1;created=1'], [f"a=:{MAC}:"], "'created' twice"),
        (['a=("x");created=1;created=2'], [f"a=:{MAC}:"], "'created' twice"),
        (['a=("x'], [f"a=:{MAC}:"], "cannot be read"),
        (['a=("é")'], [f"a=:{MAC}:"], "cannot be read"),
        (["a=(" + " ".join(f'"x{n}"' for n in range(MAX_MEMBERS + 1)) + ")"], [f"a=:{MAC}:"], "more than"),
        (['a=("x")' + "".join(f";p{n}=1" for n in range(MAX_MEMBERS + 1))], [f"a=:{MAC}:"], "more than"),
        (['a=("x")' + "".join(f";{'p' * n}=1" for n in range(1, MAX_MEMBERS + 2))], [f"a=:{MAC}:"], "more than"),
        (['a=("x");nonce="' + "x" * 9000 + '"'], [f"a=:{MAC}:"], "longer than"),
        (["a=()"], ["a=:" + "A" * 9000 + ":"], "longer than"),
    ],
)
def test_no_signature(inputs: list[str], signatures: list[str], said: str) -> None:
    """What is malformed, ambiguous or not understood is refused, and told what it is."""
    with pytest.raises(SignatureError, match=said):
        read_signature(inputs, signatures)


def test_text_is_canonical() -> None:
    """What a signature is checked over is written anew from what was read, never taken as it came."""
    read = read_signature(['a=(  "x"   "@path" );created=007;  nonce="\\\\"; tag'], [f"a=:{MAC}:"])
    assert read.text == '("x" "@path");created=7;nonce="\\\\";tag'


PIECES = st.sampled_from(
    [
        *'()";=,: ',
        "sig=",
        '"@method"',
        '"@path"',
        ";created=1",
        ';tag="x"',
        f":{MAC}:",
        "sig",
        "b=",
        "1",
        "\\",
        "é",
        "\n",
    ]
)


@settings(max_examples=soak(10_000))
@given(st.lists(PIECES, max_size=8).map("".join), st.lists(PIECES, max_size=4).map("".join))
def test_any_two_fields(described: str, made: str) -> None:
    """Any two texts are a signature or a SignatureError, never anything else."""
    try:
        read = read_signature([described], [made])
    except SignatureError:
        return
    assert read.text.startswith("(")
