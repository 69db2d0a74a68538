"""runtime.signatures.client: for an independent implementation, for httpx, for requests, and without any of them."""

from __future__ import annotations

import datetime
import io
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import requests
from http_message_signatures import HTTPMessageSigner, HTTPMessageVerifier, HTTPSignatureKeyResolver, algorithms
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.signatures import SignatureError
from runtime.signatures.client import Signer
from runtime.signatures.digest import content_digest
from runtime.signatures.nonces import MemoryNonces
from runtime.signatures.verifier import COVERED, Verifier
from runtime.types import Caller
from tests.support.clock import Clock
from tests.support.signed import KEY_ID, NOW, SECRET, message, signer

ROOT = Path(__file__).parents[3]
CALLER = Caller(KEY_ID, "signer", frozenset("*"))

METHODS = st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"])
SEGMENTS = st.text(min_size=1, max_size=8).map(lambda text: quote(text.encode("utf-8", "replace"), safe="~"))
PATHS = st.lists(SEGMENTS, max_size=3).map(lambda parts: "/" + "/".join(parts))
PAIRS = st.tuples(SEGMENTS, SEGMENTS | st.just("")).map("=".join)
QUERIES = st.none() | st.lists(PAIRS, max_size=3).map("&".join)
HOSTS = st.sampled_from(
    ["example.com", "EXAMPLE.com", "127.0.0.1:8000", "[::1]:8000", "example.com:80", "a.b-c.example"]
)
BODIES = st.binary(max_size=50)


class _Keys(HTTPSignatureKeyResolver):
    def resolve_public_key(self, key_id: str) -> bytes:
        return {KEY_ID: SECRET}[key_id]

    resolve_private_key = resolve_public_key


class _Request:
    """A request as http-message-signatures takes it."""

    def __init__(self, method: str, url: str, headers: dict[str, str]) -> None:
        self.method, self.url, self.headers = method, url, headers


def _oracle(kind: type[Any]) -> Any:
    return kind(signature_algorithm=algorithms.HMAC_SHA256, key_resolver=_Keys())


async def _verify(method: str, url: str, headers: dict[str, str], body: bytes, now: float = NOW) -> Caller:
    """Whose it is, for a service that got it over HTTP/1.1."""
    parts = httpx.URL(url)
    target = url.partition("//")[2].partition("#")[0]
    target = target[target.index("/") :] if "/" in target.partition("?")[0] else "/" + target[len(parts.netloc) :]
    host = url.partition("//")[2].partition("/")[0].partition("?")[0].lower().removesuffix(":80")
    verifier = Verifier({KEY_ID: (CALLER, SECRET)}.get, MemoryNonces(clock=Clock(now)), 300, Clock(now))

    async def read() -> bytes:
        return body

    return await verifier.verify(message(method, target, authority=host, fields=headers), read if body else None)


@settings(max_examples=500)
@given(METHODS, HOSTS, PATHS, QUERIES, BODIES)
def test_verified_by_another(method: str, host: str, path: str, query: str | None, body: bytes) -> None:
    """http-message-signatures finds our signatures good, over the components that we say."""
    url = f"http://{host}{path}" + ("" if query is None else f"?{query}")
    headers = {"Content-Type": "application/json"}
    headers |= Signer(KEY_ID, SECRET, cover=["Content-Type"]).headers(method, url, body, headers)
    (result,) = _oracle(HTTPMessageVerifier).verify(
        _Request(method, url, headers), max_age=datetime.timedelta(seconds=300), expect_tag="warmstart"
    )
    wanted = [*COVERED, *(["content-digest"] if body else []), "content-type", "@signature-params"]
    assert [name.strip('"') for name in result.covered_components] == wanted


@settings(max_examples=500)
@given(METHODS, HOSTS, PATHS, QUERIES, BODIES)
async def test_verifies_another(method: str, host: str, path: str, query: str | None, body: bytes) -> None:
    """We find the signatures of http-message-signatures good."""
    url = f"http://{host}{path}" + ("" if query is None else f"?{query}")
    request = _Request(method, url, {"Content-Type": "application/json"})
    now = datetime.datetime.now()
    _oracle(HTTPMessageSigner).sign(
        request,
        key_id=KEY_ID,
        created=now,
        expires=now + datetime.timedelta(seconds=60),
        nonce="0123456789abcdef",
        tag="warmstart",
        covered_component_ids=(*COVERED, "content-type"),
        body=body or None,
    )
    assert await _verify(method, url, request.headers, body, now.timestamp()) == CALLER


@pytest.mark.parametrize(
    ("url", "target", "authority"),
    [
        ("http://example.com", "/", "example.com"),
        ("http://example.com?a=b", "/?a=b", "example.com"),
        ("http://example.com/a?b#c", "/a?b", "example.com"),
        ("http://example.com/a#b?c", "/a", "example.com"),
        ("https://Example.com:443/a", "/a", "example.com"),
        ("https://example.com:8443/models/a%2Fb/load", "/models/a%2Fb/load", "example.com:8443"),
        ("http://me:pass@example.com/a?x=1&x=2&y=a+b%20c&z", "/a?x=1&x=2&y=a+b%20c&z", "example.com"),
        ("http://[::1]:8000/a?", "/a?", "[::1]:8000"),
    ],
)
async def test_urls(url: str, target: str, authority: str) -> None:
    """A URL is signed as it goes over the wire: credentials and fragment left out, all else as it is written."""
    fields = signer(clock=Clock(NOW)).headers("GET", url)
    verifier = Verifier({KEY_ID: (CALLER, SECRET)}.get, MemoryNonces(clock=Clock(NOW)), 300, Clock(NOW))
    sent = message("GET", target, authority=authority, scheme=url.partition(":")[0], fields=fields)
    assert await verifier.verify(sent, None) == CALLER


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://example.com/a b", "percent-encoded"),
        ("http://example.com/ü", "percent-encoded"),
        ("http://example.com/a\n", "percent-encoded"),
        ("http://exämple.com/", "percent-encoded"),
        ("/generate", "is not http://HOST/PATH"),
        ("ftp://example.com/", "is not http://HOST/PATH"),
        ("http:///generate", "is not http://HOST/PATH"),
        ("HTTP:example.com", "is not http://HOST/PATH"),
        ("", "is not http://HOST/PATH"),
    ],
)
def test_no_url(url: str, said: str) -> None:
    """What is no URL to send a request to is refused, before anybody wonders about a 401."""
    with pytest.raises(SignatureError, match=said):
        signer().headers("GET", url)


@pytest.mark.parametrize(
    ("secret", "said"), [("", "empty"), (b"", "empty"), ("not base64", "base64"), ("YQ", "base64")]
)
def test_no_secret(secret: str | bytes, said: str) -> None:
    """A secret that is none is told at once, and not repeated."""
    with pytest.raises(SignatureError, match=said) as caught:
        Signer("k", secret)
    assert "not base64" not in str(caught.value).replace("is not base64", "")


def test_secret_as_printed() -> None:
    """The base64 that the command line prints, and the bytes that it stands for, are the same secret."""
    text = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n"
    one, other = Signer(KEY_ID, text, clock=Clock(NOW)), Signer(KEY_ID, SECRET, clock=Clock(NOW))
    assert one._secret == other._secret


def test_each_signature_has_its_own_nonce() -> None:
    """The same request, signed twice at the same moment, is two requests."""
    made = {signer(clock=Clock(NOW)).headers("GET", "http://x/")["Signature"] for _ in range(20)}
    assert len(made) == 20


def test_covered_field_that_is_not_there() -> None:
    """Asking for a header field to be signed that the request has not is an error of the caller's."""
    with pytest.raises(SignatureError, match="missing: 'x-tenant'"):
        signer(cover=["X-Tenant"]).headers("GET", "http://x/", None, {"Content-Type": "a"})


async def test_a_digest_that_was_there() -> None:
    """It is replaced by the body's, and covered, also where there is no body."""
    for body in (b"", b"x"):
        sent = {"content-digest": "sha-256=:AAAA:"}
        added = signer(clock=Clock(NOW)).headers("POST", "http://x/", body, sent)
        assert added["Content-Digest"] == content_digest(body)
        assert '"content-digest"' in added["Signature-Input"]
        assert await _verify("POST", "http://x/", added, body) == CALLER


HTTPX = {
    "json": httpx.Request("POST", "http://x/a?b=c d", json={"a": "ü"}),
    "content": httpx.Request("PUT", "http://x:80/ü/%2F", content=b"\x00\xff"),
    "text": httpx.Request("POST", "http://x", content="ü"),
    "form": httpx.Request("POST", "http://x/", data={"a": "b"}),
    "query": httpx.Request("GET", "http://x/", params=[("a", "1"), ("a", "2 3"), ("b", "")]),
    "host": httpx.Request("GET", "http://127.0.0.1/", headers={"Host": "X.example"}),
    "nothing": httpx.Request("DELETE", "http://x/#fragment"),
}


@pytest.mark.parametrize("name", HTTPX)
async def test_httpx(name: str) -> None:
    """A request of httpx is signed in its place, as its transport will send it."""
    request = signer(clock=Clock(NOW))(HTTPX[name])
    verifier = Verifier({KEY_ID: (CALLER, SECRET)}.get, MemoryNonces(clock=Clock(NOW)), 300, Clock(NOW))
    sent = message(
        request.method,
        request.url.raw_path.decode(),
        authority=request.headers["Host"].lower(),
        fields=dict(request.headers),
    )

    async def read() -> bytes:
        return request.content

    assert await verifier.verify(sent, read if request.content else None) == CALLER


REQUESTS = {
    "json": requests.Request("POST", "http://x/a?b=c d", json={"a": "ü"}),
    "data": requests.Request("PUT", "http://x:80/ü/%2f", data=b"\x00\xff"),
    "text": requests.Request("POST", "http://x", data="ü"),
    "form": requests.Request("POST", "http://x/", data={"a": "b"}),
    "files": requests.Request("POST", "http://x/", files={"a": b"b"}),
    "query": requests.Request("GET", "http://x/", params=[("a", "1"), ("a", "2 3"), ("b", "")]),
    "host": requests.Request("GET", "http://127.0.0.1/", headers={"Host": "X.example"}),
    "bytes": requests.Request("GET", "http://x/", headers={"X-Bytes": b"value"}),
    "nothing": requests.Request("DELETE", "http://x/../a#fragment"),
}


@pytest.mark.parametrize("name", REQUESTS)
async def test_requests(name: str) -> None:
    """A request of requests, likewise."""
    request = signer(clock=Clock(NOW))(REQUESTS[name].prepare())
    verifier = Verifier({KEY_ID: (CALLER, SECRET)}.get, MemoryNonces(clock=Clock(NOW)), 300, Clock(NOW))
    fields = {key: value if isinstance(value, str) else value.decode() for key, value in request.headers.items()}
    body = request.body.encode() if isinstance(request.body, str) else request.body or b""

    async def read() -> bytes:
        return body

    authority = fields.get("Host", "x").lower()
    sent = message(request.method, request.path_url, authority=authority, fields=fields)
    assert await verifier.verify(sent, read if body else None) == CALLER


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(httpx.Request("POST", "http://x/", content=iter([b"a"])), id="httpx"),
        pytest.param(httpx.Request("POST", "http://x/", files={"a": b"b"}), id="httpx multipart"),
        pytest.param(requests.Request("POST", "http://x/", data=iter([b"a"])).prepare(), id="requests"),
        pytest.param(requests.Request("POST", "http://x/", data=io.BytesIO(b"a")).prepare(), id="requests file"),
    ],
)
def test_streamed_bodies(request_: Any) -> None:
    """A body that is not there yet has no digest; the error says what to do."""
    with pytest.raises(SignatureError, match="pass the complete body"):
        signer()(request_)
    assert "Signature" not in request_.headers


def test_needs_the_standard_library_only() -> None:
    """Whoever signs needs none of the service's dependencies."""
    code = "from runtime.signatures.client import Signer; print(Signer('k', b's').headers('GET', 'http://x/')['Signature'])"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("sig=:")
