"""middleware.security_headers on every kind of answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.fakes import serving
from tests.support.wire import Echo, exchange, head

PROMPT = {"prompt": "x"}
ANSWERS = {
    "json": ("GET", "/livez", {}),
    "HEAD": ("HEAD", "/health", {}),
    "operation": ("POST", "/generate", {"json": PROMPT}),
    "stream": ("POST", "/generate", {"json": PROMPT | {"stream": True}}),
    "metrics": ("GET", "/metrics", {}),
    "not found": ("GET", "/nowhere", {}),
    "not allowed": ("PUT", "/generate", {}),
    "invalid": ("POST", "/generate", {"json": {}}),
    "OpenAI's": ("POST", "/v1/chat/completions", {"json": {}}),
    "description": ("GET", "/openapi.json", {}),
}


@pytest.mark.parametrize(("method", "path", "sent"), ANSWERS.values(), ids=ANSWERS.keys())
async def test_every_answer(method: str, path: str, sent: dict[str, Any]) -> None:
    """The whole set, once each; nothing of it says which server or version this is."""
    async with serving() as url, aiohttp.request(method, url + path, **sent) as answer:
        headers = answer.headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert "camera=()" in headers["Permissions-Policy"]
    assert headers["Cache-Control"] == ("no-cache" if path == "/openapi.json" else "no-store")
    assert headers["Server"] == "warmstart"
    assert "Strict-Transport-Security" not in headers
    assert len(headers) == len(set(map(str.lower, headers)))
    assert "aiohttp" not in str(headers).lower()


@pytest.mark.parametrize("path", ["/", "/docs", "/redoc"])
async def test_pages(path: str) -> None:
    """A page keeps its own policy, and shares its window with nobody."""
    async with serving() as url, aiohttp.request("GET", url + path) as answer:
        assert "script-src 'self'" in answer.headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cache-Control"] == "no-cache"
        etag = answer.headers["ETag"]
    async with serving() as url, aiohttp.request("GET", url + path, headers={"If-None-Match": etag}) as answer:
        assert answer.status == 304
        assert answer.headers["Server"] == "warmstart"
        assert "script-src 'self'" in answer.headers["Content-Security-Policy"]


async def test_files_stay_cacheable() -> None:
    """What is named by its content is kept by browsers as before."""
    async with serving() as url, aiohttp.ClientSession(url) as client:
        page = await (await client.get("/docs")).text()
        script = page.partition('src="')[2].partition('"')[0]
        answer = await client.get("/" + script)
        assert answer.status == 200
        assert "immutable" in answer.headers["Cache-Control"]


async def test_unreadable_requests() -> None:
    """An answer that no middleware sees has them too."""
    async with Echo().listening() as port:
        fields = head(await exchange(port, b"nonsense\r\n\r\n"))
    assert fields["x-content-type-options"] == "nosniff"
    assert fields["cache-control"] == "no-store"
    assert fields["server"] == "warmstart"


@pytest.mark.parametrize(
    ("settings", "said", "expected"),
    [
        ({"trusted_proxies": "127.0.0.1", "forwarded_origin": True}, "https", True),
        ({"trusted_proxies": "127.0.0.1", "forwarded_origin": True}, "http", False),
        ({"trusted_proxies": "127.0.0.1"}, "https", False),
        ({"forwarded_origin": True}, "https", False),
    ],
)
async def test_strict_transport_security(settings: dict[str, Any], said: str, expected: bool) -> None:
    """Sent where the client came by TLS, as far as anybody trustworthy says so; ``test_tls.py`` has our own TLS."""
    forwarded = {"X-Forwarded-Proto": said, "X-Forwarded-For": "127.0.0.1"}
    async with serving(**settings) as url, aiohttp.request("GET", url + "/livez", headers=forwarded) as answer:
        assert ("Strict-Transport-Security" in answer.headers) == expected


async def test_cors_is_untouched() -> None:
    """A page of a configured origin may read answers, errors and preflights; another's may not."""
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    async with serving(cors_origins="https://app.example") as url, aiohttp.ClientSession(url) as client:
        mine, other = {"Origin": "https://app.example"}, {"Origin": "https://evil.example"}
        for answer in (
            await client.options("/generate", headers=mine | asked),
            await client.post("/generate", headers=mine, json=PROMPT),
            await client.post("/generate", headers=mine, json={}),
        ):
            assert answer.headers["Access-Control-Allow-Origin"] == "https://app.example"
        answer = await client.post("/generate", headers=other, json=PROMPT)
        assert "Access-Control-Allow-Origin" not in answer.headers


def test_nginx_names_scheme_and_host() -> None:
    """The shipped proxy sets both headers itself, so that a client's own never pass."""
    text = (Path(__file__).parents[2] / "deploy" / "nginx.conf").read_text()
    assert "proxy_set_header X-Forwarded-Proto $scheme;" in text
    assert "proxy_set_header X-Forwarded-Host $http_host;" in text
