"""middleware.signing: over the real application, real HTTP and a real Redis."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import httpx
import pytest
import requests
from aiohttp import web
from aiohttp.test_utils import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from yarl import URL

from app import create_app
from runtime.settings import Settings
from runtime.signatures.client import Signer
from tests.support.fakes import fake_context, serving
from tests.support.redis_server import REDIS_URL, real_redis
from tests.support.signed import message, params, record, signer, with_signature
from tests.support.soak import soak

Client = Callable[[web.Application], Awaitable[TestClient[web.Request, web.Application]]]
COVERED = ("@method", "@authority", "@path", "@query")
BODY = b'{"prompt": "Hi"}'
API_KEY_RECORD = {
    "id": "k_api",
    "name": "api",
    "scopes": ["generate"],
    "created": 1,
    "expires": None,
    "sha256": "",
}


def _settings(**changes: Any) -> Settings:
    return Settings.load(
        **{"api_keys": record(), "request_signing": "required", "auth_failures_per_minute": 1_000_000} | changes
    )


def _app(**changes: Any) -> web.Application:
    return create_app(_settings(**changes), fake_context())


class Signed:
    """Calls an application with signatures."""

    def __init__(self, client: TestClient[web.Request, web.Application], made_by: Signer | None = None) -> None:
        self._client = client
        self._signer = made_by or signer()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self._client.port}{path}"

    def headers(self, method: str, path: str, body: bytes = b"") -> dict[str, str]:
        return {"Content-Type": "application/json"} | self._signer.headers(method, self.url(path), body)

    async def __call__(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, Any], dict[str, str]]:
        """Status, body and headers of the answer; signed, unless there are headers."""
        response = await self._client.session.request(
            method,
            URL(self.url(path), encoded=True),
            data=body or None,
            headers=self.headers(method, path, body) if headers is None else headers,
        )
        text = await response.text()
        return response.status, json.loads(text) if text else {}, dict(response.headers)


@pytest.fixture
async def signed(aiohttp_client: Client) -> Signed:
    """The application with signatures required."""
    return Signed(await aiohttp_client(_app()))


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/models", b""),
        ("HEAD", "/models", b""),
        ("POST", "/generate", BODY),
        ("GET", "/stats?", b""),
        ("POST", "/chat/completions", b'{"messages": [{"role": "user", "content": "Hi"}]}'),
    ],
)
async def test_signed_requests(signed: Signed, method: str, path: str, body: bytes) -> None:
    """A signed request is answered like any other."""
    assert (await signed(method, path, body))[0] == 200


async def test_paths_and_queries_as_they_are_sent(aiohttp_client: Client) -> None:
    """Percent-encoded slashes, blanks and repeated names are signed undecoded, and reach the operation decoded."""
    signed = Signed(await aiohttp_client(_app(api_keys=record(scopes=["*", "admin"]))))
    for path in ("/models/a%2Fb/load", "/models/a/b/load", "/models/%61/load"):
        status, answer, _ = await signed("POST", path)
        assert status == 404
        assert answer["code"] == "model_not_found"
    for query in ("a=b%20c&a=d+e&a=", "a=%2B&a=%c3%bc", "&&a=1&a=2"):
        status, answer, _ = await signed("GET", f"/models?{query}")
        assert (status, answer["code"], answer["param"]) == (400, "invalid_request", "a")


async def test_streams(signed: Signed) -> None:
    """A signed request may be answered with a stream."""
    body = b'{"prompt": "Hi", "stream": true}'
    headers = signed.headers("POST", "/generate", body)
    response = await signed._client.session.post(signed.url("/generate"), data=body, headers=headers)
    assert response.status == 200
    assert (await response.text()).endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/health"])
async def test_probes_are_open(signed: Signed, path: str) -> None:
    """Probes need no signature, and a wrong one does not matter to them."""
    assert (await signed("GET", path, headers={}))[0] == 200
    assert (await signed("GET", path, headers={"Signature-Input": "x", "Signature": "y"}))[0] == 200


@pytest.mark.parametrize("path", ["/models", "/nowhere", "/metrics", "/docs", "/v1/models"])
async def test_unsigned(signed: Signed, path: str) -> None:
    """Everything else does, what does not exist too."""
    status, _, headers = await signed("GET", path, headers={})
    assert status == 401
    assert "WWW-Authenticate" in headers


async def test_what_is_asked_for(signed: Signed) -> None:
    """A wrong signature is answered with a challenge and with what one must be like (RFC 9421 section 5.1)."""
    status, answer, headers = await signed("GET", "/models", headers={"Signature-Input": "x=()"})
    assert (status, answer["code"], answer["title"]) == (401, "invalid_signature", "Unauthorized")
    assert "both Signature-Input and Signature" in answer["detail"]
    assert headers["WWW-Authenticate"] == 'Signature realm="warmstart"'
    assert headers["Accept-Signature"] == (
        'sig=("@method" "@authority" "@path" "@query" "content-digest")'
        ';created;expires;nonce;keyid;alg="hmac-sha256";tag="warmstart"'
    )
    assert "Accept-Signature" not in (await signed("GET", "/models"))[2]


async def test_openai_shape(signed: Signed) -> None:
    """An OpenAI client is told in its own language."""
    status, answer, _ = await signed("GET", "/v1/models", headers={"Signature-Input": "x=()"})
    assert (status, answer["error"]["code"]) == (401, "invalid_signature")


async def test_replay(signed: Signed) -> None:
    """The same request, byte for byte, is refused the second time, also when both come at once."""
    headers = signed.headers("POST", "/generate", BODY)
    assert (await signed("POST", "/generate", BODY, headers))[0] == 200
    status, answer, _ = await signed("POST", "/generate", BODY, headers)
    assert (status, answer["code"]) == (401, "invalid_signature")
    assert "used before" in answer["detail"]
    headers = signed.headers("POST", "/generate", BODY)
    answers = await asyncio.gather(*(signed("POST", "/generate", BODY, headers) for _ in range(5)))
    assert sorted(status for status, _, _ in answers) == [200, 401, 401, 401, 401]


@pytest.mark.parametrize(
    ("method", "path", "body", "changes"),
    [
        ("PUT", "/generate?a=1", BODY, {}),
        ("POST", "/complete?a=1", BODY, {}),
        ("POST", "/generate?a=2", BODY, {}),
        ("POST", "/generate", BODY, {}),
        ("POST", "/generate?a=1", b'{"prompt": "Ho"}', {}),
        ("POST", "/generate?a=1", b"", {}),
        ("POST", "/generate?a=1", BODY, {"Host": "other.example"}),
        ("POST", "/generate?a=1", BODY, {"Content-Digest": "sha-256=:AAAA:"}),
        ("POST", "/generate?a=1", BODY, {"Content-Digest": ""}),
        ("POST", "/generate?a=1", BODY, {"Signature": "sig=:AAAA:"}),
    ],
)
async def test_tampered(signed: Signed, method: str, path: str, body: bytes, changes: dict[str, str]) -> None:
    """Whatever was signed and is changed on the way, the request is refused, and the original is good afterwards."""
    headers = signed.headers("POST", "/generate?a=1", BODY)
    status, answer, _ = await signed(method, path, body, headers | changes)
    assert (status, answer["code"]) == (401, "invalid_signature")
    assert (await signed("POST", "/generate?a=1", BODY, headers))[0] == 200


async def test_body_with_no_digest(signed: Signed) -> None:
    """A body cannot be put under the signature of a request that had none."""
    headers = signed.headers("POST", "/generate")
    status, answer, _ = await signed("POST", "/generate", BODY, headers)
    assert (status, answer["detail"]) == (
        401,
        "the signature is not valid: the signature must cover content-digest too",
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"Signature-Input": "sig=()"},
        {"Signature-Input": "", "Signature": ""},
        {"Signature-Input": "sig=(", "Signature": "sig=:AAAA:"},
        {"Signature-Input": 'sig=("@method")', "Signature": "sig=:!:"},
        {"Signature-Input": 'sig=("@method")', "Signature": "sig=:A:"},
        {"Signature-Input": 'sig=("@method" "@method")', "Signature": "sig=:AAAA:"},
        {"Signature-Input": "a=(), a=()", "Signature": "a=:AAAA:"},
        {"Signature-Input": "a=(), b=()", "Signature": "a=:AAAA:, b=:AAAA:"},
        {"Signature-Input": "a=();created=1;created=2", "Signature": "a=:AAAA:"},
        {"Signature-Input": "a=(" + '"x" ' * 1500 + ")", "Signature": "a=:AAAA:"},
        {"Signature-Input": 'a=("' + "x" * 8000 + '")', "Signature": "a=:AAAA:"},
        {"Signature-Input": 'a=("é")', "Signature": "a=:é:"},
        {"Signature-Input": "a=(\udcff)", "Signature": "a=:AAAA:"},
        {"Signature-Input": "\t", "Signature": "\t"},
    ],
)
async def test_malformed(signed: Signed, fields: dict[str, str]) -> None:
    """Whatever is no signature gets 401, with a word about it, never 500; what was sent is not repeated at length."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    for path in ("/models", "/v1/models"):
        status, answer = await _raw(signed, f"GET {path} HTTP/1.1\r\nHost: x\r\n{lines}Connection: close\r\n\r\n")
        assert status == 401, answer
        assert b"invalid_signature" in answer
        assert len(answer) < 1500


async def test_malformed_digests(signed: Signed) -> None:
    """A digest that is covered and signed, and is none, likewise."""
    for digest in (
        "",
        "x",
        "sha-256",
        "sha-256=:A:",
        "sha-256=(:AAAA:)",
        "md5=:AAAA:",
        "sha-256=:AAAA:, sha-256=:AAAA:",
    ):
        status, answer, _ = await signed("POST", "/generate", BODY, _own(signed, {"Content-Digest": digest}))
        assert (status, answer["code"]) == (401, "invalid_signature"), digest
        assert "Content-Digest" in answer["detail"]


@pytest.mark.parametrize(
    ("component", "said"),
    [
        ("@status", "a request has no component"),
        ("@query-param", "a request has no component"),
        ("@body", "a request has no component"),
        ("x-absent", "is missing"),
        ("Content-Type", "a request has no component"),
    ],
)
async def test_unknown_components(signed: Signed, component: str, said: str) -> None:
    """A component that is not known, or not there, is 401, and named."""
    headers = signed.headers("GET", "/models")
    headers["Signature-Input"] = headers["Signature-Input"].replace('"@query"', f'"@query" "{component}"')
    status, answer, _ = await signed("GET", "/models", headers=headers)
    assert status == 401
    assert said in answer["detail"]


async def test_several_lines_are_one_field(signed: Signed) -> None:
    """RFC 9110 section 5.3: a covered field on two lines is signed as one; two signatures on two lines are two."""
    fields = [("X-Tenant", "a"), ("X-Tenant", "b")]
    host = f"127.0.0.1:{signed._client.port}"
    unsigned = message("GET", "/models", authority=host, fields=fields)
    made = with_signature(unsigned, (*COVERED, "x-tenant"), _now())
    text = "".join(f"{name}: {value}\r\n" for name, value in [*fields, *made.items()])
    status, answer = await _raw(signed, f"GET /models HTTP/1.1\r\nHost: {host}\r\n{text}Connection: close\r\n\r\n")
    assert status == 200, answer
    status, answer = await _raw(
        signed, f"GET /models HTTP/1.1\r\nHost: {host}\r\n{text}{text}Connection: close\r\n\r\n"
    )
    assert status == 401, answer


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("http://HOST/models", 200),
        ("http://other.example/models", 401),
        ("http://HOST@other.example/models", 401),
        ("/models#fragment", 401),
    ],
)
async def test_target_in_other_forms(signed: Signed, target: str, status: int) -> None:
    """An absolute target must name the host that the Host header names; nothing in it stays unsigned."""
    host = f"127.0.0.1:{signed._client.port}"
    made = "".join(f"{name}: {value}\r\n" for name, value in signed.headers("GET", "/models").items())
    target = target.replace("HOST", host)
    found, answer = await _raw(signed, f"GET {target} HTTP/1.1\r\nHost: {host}\r\n{made}Connection: close\r\n\r\n")
    assert found == status, answer


async def test_pinned_authority(aiohttp_client: Client) -> None:
    """With SIGNING_AUTHORITY signatures name that, whatever the Host header says; without the default port."""
    pinned = Signed(await aiohttp_client(_app(signing_authority="API.example:80")))
    made = signer().headers("GET", "http://api.example/models")
    assert (await pinned("GET", "/models", headers={"Host": "evil.example"} | made))[0] == 200
    assert (await pinned("GET", "/models"))[0] == 401


async def test_a_proxy_names_the_authority(aiohttp_client: Client) -> None:
    """With FORWARDED_ORIGIN a trusted proxy's word on host and scheme is what is compared; nobody else's is."""
    told = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "api.example"}
    trusted = {"trusted_proxies": "127.0.0.1", "forwarded_origin": True}
    for changes, status in ((trusted, 200), ({"forwarded_origin": True}, 401), ({}, 401)):
        client = Signed(await aiohttp_client(_app(**changes)))
        made = signer().headers("GET", "https://api.example/models")
        assert (await client("GET", "/models", headers=made | told))[0] == status


async def test_accepted(aiohttp_client: Client) -> None:
    """Where signatures are accepted, an API key does as well; a signature beside one must be good all the same."""
    key, text = _api_key()
    client = Signed(await aiohttp_client(_app(request_signing="accepted", api_keys=f"{record()}\n{text}")))
    bearer = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    assert (await client("POST", "/generate", BODY, bearer))[0] == 200
    assert (await client("POST", "/generate", BODY))[0] == 200
    assert (await client("POST", "/generate", BODY, bearer | client.headers("POST", "/generate", BODY)))[0] == 200
    assert (await client("POST", "/generate", BODY, bearer | client.headers("POST", "/complete", BODY)))[0] == 401
    assert (await client("POST", "/generate", BODY, bearer | {"Signature": "sig=:AAAA:"}))[0] == 401
    assert (await client("POST", "/generate", BODY, {}))[0] == 401


async def test_required_beside_a_key(aiohttp_client: Client) -> None:
    """Where signatures are required, a good API key alone does not do."""
    key, text = _api_key()
    client = Signed(await aiohttp_client(_app(api_keys=f"{record()}\n{text}")))
    bearer = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    assert (await client("POST", "/generate", BODY, bearer))[0] == 401
    assert (await client("POST", "/generate", BODY, bearer | client.headers("POST", "/generate", BODY)))[0] == 200


async def test_required_without_anything(aiohttp_client: Client) -> None:
    """Who sends no credential where signatures are required is told of signatures, not of keys."""
    http = await aiohttp_client(_app())
    response = await http.get("/models")
    assert (response.status, (await response.json())["code"]) == (401, "invalid_signature")
    assert response.headers["WWW-Authenticate"] == 'Signature realm="warmstart"'


async def test_off(aiohttp_client: Client) -> None:
    """Where signatures are off they are no credential, and nobody looks at them beside a key."""
    key, text = _api_key()
    client = Signed(await aiohttp_client(_app(request_signing="off", api_keys=f"{record()}\n{text}")))
    bearer = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    assert (await client("POST", "/generate", BODY))[0] == 401
    assert (await client("POST", "/generate", BODY, bearer | {"Signature-Input": "x"}))[0] == 200


async def test_scopes(aiohttp_client: Client) -> None:
    """A signing key has scopes like an API key; 403 names the one that is missing."""
    client = Signed(await aiohttp_client(_app(api_keys=record(scopes=["generate"]))))
    assert (await client("POST", "/generate", BODY))[0] == 200
    status, answer, headers = await client("POST", "/models/fake/unload")
    assert (status, answer["code"]) == (403, "insufficient_scope")
    assert headers["WWW-Authenticate"] == 'Signature realm="warmstart", error="insufficient_scope", scope="admin"'
    assert (await client("GET", "/nowhere"))[0] == 404


@pytest.mark.parametrize("fields", [{"id": "k_else"}, {"expires": 2}, {"hmac_secret": "A" * 43 + "="}])
async def test_unknown_expired_and_wrong_keys(aiohttp_client: Client, fields: dict[str, Any]) -> None:
    """All three are told the same."""
    client = Signed(await aiohttp_client(_app(api_keys=record(**fields))))
    status, answer, _ = await client("GET", "/models")
    assert status == 401
    assert answer["detail"].endswith("the key is unknown, or the signature is not one of this request with that key")


async def test_failures_are_limited(aiohttp_client: Client, caplog: pytest.LogCaptureFixture) -> None:
    """Past the limit a wrong signature gets 429 and is not logged; a good one from the same address still works."""
    client = Signed(await aiohttp_client(_app(auth_failures_per_minute=4)))
    caplog.set_level(logging.INFO, "warmstart.edge")
    wrong = {"Signature-Input": "x=()", "Signature": "x=:AAAA:"}
    answers = [await client("GET", "/models", headers=wrong) for _ in range(4)]
    assert [status for status, _, _ in answers] == [401, 401, 429, 429]
    assert int(answers[-1][2]["Retry-After"]) > 0
    assert len([line for line in caplog.messages if "invalid signature: client 127.0.0.1" in line]) == 2
    assert (await client("GET", "/models"))[0] == 200


async def test_nothing_secret_is_logged(signed: Signed, caplog: pytest.LogCaptureFixture) -> None:
    """Neither a signature nor a nonce is in a line of the log, good or wrong."""
    caplog.set_level(logging.DEBUG)
    headers = signed.headers("GET", "/models")
    nonce = headers["Signature-Input"].partition('nonce="')[2].partition('"')[0]
    for sent in (headers, headers, headers | {"Signature": "sig=:" + "A" * 43 + "=:"}):
        await signed("GET", "/models", headers=sent)
    lines = "\n".join(f"{entry.getMessage()} {vars(entry)}" for entry in caplog.records)
    assert "invalid signature" in lines
    assert nonce not in lines
    assert headers["Signature"] not in lines


async def test_nobody_unknown_is_waited_for(signed: Signed) -> None:
    """A wrong signature is refused before the body is there; a good one waits for it, and no longer than others do."""
    body = b"x" * 999
    for headers in (
        {"Signature-Input": "x=()", "Signature": "x=:AAAA:", "Content-Digest": "sha-256=:AAAA:"},
        signed.headers("POST", "/complete", body),
    ):
        text = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        reader, writer = await asyncio.open_connection("127.0.0.1", signed._client.port)
        writer.write(f"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 999\r\n{text}\r\n".encode())
        async with asyncio.timeout(10):
            assert (await reader.readline()).startswith(b"HTTP/1.1 401 ")
        writer.close()


async def test_late_and_large_bodies(aiohttp_client: Client) -> None:
    """Who is known and does not deliver, or sends too much, gets what everybody gets."""
    client = Signed(await aiohttp_client(_app(body_timeout_seconds=0.1, max_body_bytes=1024)))
    host = f"127.0.0.1:{client._client.port}"
    made = "".join(f"{name}: {value}\r\n" for name, value in client.headers("POST", "/generate", BODY).items())
    status, _ = await _raw(client, f"POST /generate HTTP/1.1\r\nHost: {host}\r\nContent-Length: 16\r\n{made}\r\n")
    assert status == 408
    assert (await client("POST", "/generate", b"x" * 2000))[0] == 413


@pytest.fixture
def shared_redis() -> str:
    """A real Redis; nonces are random, so that tests do not meet there."""
    with real_redis():
        return REDIS_URL


async def test_two_replicas(shared_redis: str) -> None:
    """What one replica has answered, the other does not answer again."""
    settings: dict[str, Any] = {
        "api_keys": record(),
        "request_signing": "required",
        "signing_nonces": "redis",
        "redis_url": shared_redis,
        "signing_authority": "api.example",
    }
    async with serving(**settings) as one, serving(**settings) as other, httpx.AsyncClient() as client:
        for first, second in ((one, other), (other, one)):
            made = signer().headers("GET", "http://api.example/models")
            assert (await client.get(f"{first}/models", headers=made)).status_code == 200
            answer = await client.get(f"{second}/models", headers=made)
            assert answer.status_code == 401
            assert "used before" in answer.json()["detail"]


async def test_redis_away(aiohttp_client: Client) -> None:
    """Without Redis nobody with a signature gets in: 503, and when to try again; probes answer."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for port in (1, silent.getsockname()[1]):
            app = _app(signing_nonces="redis", redis_url=f"redis://127.0.0.1:{port}/0")
            client = Signed(await aiohttp_client(app))
            for _ in range(2):
                status, answer, headers = await client("GET", "/models")
                assert (status, answer["code"], headers["Retry-After"]) == (503, "nonces_unavailable", "1")
            assert (await client("GET", "/livez", headers={}))[0] == 200
            assert (await client("GET", "/models", headers={"Signature-Input": "x"}))[0] == 401


async def test_httpx_and_requests() -> None:
    """Both libraries sign through the helper, for GET and POST, with queries and any path."""
    async with serving(api_keys=record(scopes=["*", "admin"]), request_signing="required") as url:

        def with_requests() -> None:
            with requests.Session() as session:
                session.auth = signer()
                assert session.post(f"{url}/generate", json={"prompt": "ü"}).status_code == 200
                assert session.get(f"{url}/models").status_code == 200
                answer = session.get(f"{url}/models", params=[("a", "1 2"), ("a", "ü")])
                assert (answer.status_code, answer.json()["param"]) == (400, "a")
                assert session.post(f"{url}/models/a%2fb/load").json()["code"] == "model_not_found"
                lines = session.post(f"{url}/generate", json={"prompt": "x", "stream": True}, stream=True).iter_lines()
                assert list(lines)[-2] == b"data: [DONE]"

        await asyncio.to_thread(with_requests)
        async with httpx.AsyncClient(auth=signer()) as client:
            assert (await client.post(f"{url}/generate", json={"prompt": "ü"})).status_code == 200
            assert (await client.get(f"{url}/models")).status_code == 200
            answer = await client.get(f"{url}/models", params=[("a", "1 2"), ("a", "ü")])
            assert (answer.status_code, answer.json()["param"]) == (400, "a")
            assert (await client.post(f"{url}/models/a%2fb/load")).json()["code"] == "model_not_found"
            async with client.stream("POST", f"{url}/generate", json={"prompt": "x", "stream": True}) as response:
                assert (await response.aread()).endswith(b"data: [DONE]\n\n")


# What may stand in a header field (RFC 9110 section 5.5): no control characters but tabs.
TEXT = [chr(code) for code in (9, *range(0x20, 0x7F), *range(0x80, 0x100))]
HEADER = st.text(TEXT, max_size=40) | st.lists(
    st.sampled_from([*'()";=,:? ', "sig=", '"@method"', ";created=1", ";x", ":YQ==:", "sig"]), max_size=12
).map("".join)


@pytest.fixture(scope="module")
def connection() -> Iterator[http.client.HTTPConnection]:
    """A connection to the application, which runs in a thread of its own."""
    loop, service = (
        asyncio.new_event_loop(),
        serving(api_keys=record(), request_signing="required", auth_failures_per_minute=1_000_000, log_level="ERROR"),
    )
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    url = asyncio.run_coroutine_threadsafe(service.__aenter__(), loop).result(30)
    made = http.client.HTTPConnection("127.0.0.1", int(url.rpartition(":")[2]), timeout=30)
    yield made
    made.close()
    asyncio.run_coroutine_threadsafe(service.__aexit__(None, None, None), loop).result(30)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@settings(max_examples=soak(1_000))
@given(HEADER, HEADER, st.none() | HEADER)
def test_any_headers(connection: http.client.HTTPConnection, described: str, made: str, digest: str | None) -> None:
    """Whatever stands in the three header fields, the answer is 401, and never anything else."""
    fields = {"Signature-Input": described, "Signature": made} | ({} if digest is None else {"Content-Digest": digest})
    connection.request("GET", "/models", headers={name: value.encode("latin-1") for name, value in fields.items()})
    response = connection.getresponse()
    assert (response.status, b"invalid_signature" in response.read()) == (401, True)


def _own(signed: Signed, fields: dict[str, str]) -> dict[str, str]:
    """A good signature over fields of any kind."""
    host = f"127.0.0.1:{signed._client.port}"
    unsigned = message("POST", "/generate", authority=host, fields=fields)
    made = with_signature(unsigned, (*COVERED, *(name.lower() for name in fields)), _now())
    return {"Content-Type": "application/json"} | fields | made


def _now() -> dict[str, Any]:
    now = int(time.time())
    return params(created=now, expires=now + 60, nonce=os.urandom(16).hex())


def _api_key() -> tuple[str, str]:
    """A key, and its record."""
    from runtime.keys.records import digest, new_key

    key = new_key()
    return key, json.dumps(API_KEY_RECORD | {"sha256": digest(key).hex()})


async def _raw(signed: Signed, text: str) -> tuple[int, bytes]:
    """Status and body of what is answered to these bytes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", signed._client.port)
    writer.write(text.encode("utf-8", "surrogateescape"))
    try:
        async with asyncio.timeout(10):
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0] or 0)
            return int(head.split(b" ")[1]), await reader.readexactly(length)
    finally:
        writer.close()
