"""middleware.access_log: one line per request."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from runtime.telemetry.logging import JsonFormatter
from tests.support.fakes import FakeEngine, fake_context, serving, until

PROMPT = "a prompt that is nobody's business"
BODIES: dict[str, dict[str, Any]] = {
    "/generate": {"prompt": PROMPT},
    "/complete": {"prompt": [PROMPT]},
    "/chat/completions": {"messages": [{"role": "user", "content": PROMPT}]},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": [{"type": "text", "text": PROMPT}]}]},
}


class Log:
    """The service's log as it is written: JSON lines."""

    def __init__(self) -> None:
        self.stream = io.StringIO()

    @property
    def lines(self) -> list[dict[str, Any]]:
        """All lines."""
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]

    @property
    def access(self) -> list[dict[str, Any]]:
        """Lines of requests."""
        return [line for line in self.lines if line["logger"] == "warmstart.access"]


@pytest.fixture
def log() -> Any:
    """All that the service logs, from DEBUG on."""
    log = Log()
    handler = logging.StreamHandler(log.stream)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("warmstart")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield log
    logger.removeHandler(handler)
    logger.setLevel(before)


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP client."""
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.mark.parametrize(("path", "body"), BODIES.items())
@pytest.mark.parametrize("stream", [False, True])
async def test_line(log: Log, http: aiohttp.ClientSession, path: str, body: dict[str, Any], stream: bool) -> None:
    """What was asked, by whom, how it ended, how long it took and what it cost; not what was said."""
    async with serving(fake_context(FakeEngine(token_length=7))) as url:
        async with http.post(url + path, json=body | {"stream": stream}, headers={"X-Request-Id": "mine"}) as response:
            await response.read()
        await until(lambda: log.access)
    (line,) = log.access
    duration = line.pop("duration_ms")
    assert 0 < duration < 10_000
    assert line.pop("time")
    assert line == {
        "level": "INFO",
        "logger": "warmstart.access",
        "message": f"POST {path}",
        "request_id": "mine",
        "status": 200,
        "client": "127.0.0.1",
        "tokens_in": 7,
        "tokens_out": 3,
    }
    assert PROMPT not in log.stream.getvalue()


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/models", None, 200),
        ("GET", "/nowhere", None, 404),
        ("GET", "/generate", None, 405),
        ("POST", "/generate", b"{", 400),
        ("POST", "/generate", b'{"prompt": "x", "model": "other"}', 404),
        ("POST", "/generate", b"x" * 3000, 413),
        ("GET", "/health?x=1", None, 400),
    ],
)
async def test_refused_requests_have_their_line(
    log: Log, http: aiohttp.ClientSession, method: str, path: str, body: bytes | None, status: int
) -> None:
    """Every request has exactly one line, however it ends; no tokens are none, not zero; the query is left out."""
    async with serving(max_body_bytes=2000) as url:
        async with http.request(method, url + path, data=body, headers={"Content-Type": "application/json"}) as answer:
            assert answer.status == status
        await until(lambda: log.access)
    (line,) = log.access
    assert (line["status"], line["level"]) == (status, "INFO")
    assert (line["tokens_in"], line["tokens_out"]) == (None, None)
    assert line["message"] == f"{method} {path.partition('?')[0]}"


async def test_denied_clients_have_their_line(log: Log, http: aiohttp.ClientSession) -> None:
    """A refused address is logged with the address it came from, and with the id its answer carries."""
    async with serving(allowed_ips="10.0.0.0/8") as url:
        async with http.get(url + "/models") as response:
            assert response.status == 403
        await until(lambda: log.access)
    (line,) = log.access
    assert (line["status"], line["client"]) == (403, "127.0.0.1")
    assert line["request_id"] == response.headers["X-Request-Id"]


async def test_unknown_clients_have_their_line(log: Log, http: aiohttp.ClientSession) -> None:
    """A client whose address cannot be told has none in its line."""
    async with serving(trusted_proxies="127.0.0.1") as url:
        async with http.get(url + "/models", headers={"X-Forwarded-For": "unknown"}) as response:
            assert response.status == 403
        await until(lambda: log.access)
    (line,) = log.access
    assert (line["status"], line["client"]) == (403, None)


async def test_resolved_client(log: Log, http: aiohttp.ClientSession) -> None:
    """Behind a trusted proxy the line names the client, not the proxy."""
    async with serving(trusted_proxies="127.0.0.1") as url:
        async with http.get(url + "/models", headers={"X-Forwarded-For": "10.1.2.3"}) as response:
            assert response.status == 200
        await until(lambda: log.access)
    assert log.access[0]["client"] == "10.1.2.3"


@pytest.mark.parametrize(
    ("path", "models", "status", "level"),
    [
        ("/livez", {}, 200, "DEBUG"),
        ("/stats", {}, 200, "DEBUG"),
        ("/readyz", {}, 200, "DEBUG"),
        ("/health", {}, 200, "DEBUG"),
        ("/readyz", {"ready": False}, 503, "INFO"),
        ("/models", {}, 200, "INFO"),
    ],
)
async def test_probes_are_quiet(
    log: Log, http: aiohttp.ClientSession, path: str, models: dict[str, Any], status: int, level: str
) -> None:
    """Probes come every few seconds; they are told only when they fail, or on the lowest level."""
    async with serving(fake_context(**models)) as url:
        async with http.get(url + path) as response:
            assert response.status == status
        await until(lambda: log.access)
    (line,) = log.access
    assert (line["status"], line["level"]) == (status, level)


@pytest.mark.parametrize("stream", [False, True])
async def test_client_that_goes(log: Log, http: aiohttp.ClientSession, stream: bool) -> None:
    """A client that goes away before the end is 499, and what it has cost until then is told."""
    engine = FakeEngine(words=("a",) * 10_000, pause=0.002)
    async with serving(fake_context(engine)) as url:
        body = {"prompt": "x", "max_new_tokens": 10_000, "stream": stream}
        call = asyncio.create_task(_read(http, url + "/generate", body))
        await until(lambda: engine.generated > 3)
        call.cancel()
        await until(lambda: log.access)
    (line,) = log.access
    assert line["status"] == 499
    assert line["tokens_in"] == 1
    assert 0 < line["tokens_out"] < 10_000


async def _read(http: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> None:
    async with http.post(url, json=body) as response:
        await response.read()


async def test_failed_stream_has_its_cost(log: Log, http: aiohttp.ClientSession) -> None:
    """A stream that fails midway is told with what it has cost."""
    async with serving(fake_context(FakeEngine(fail_after=2))) as url:
        await _read(http, url + "/generate", {"prompt": "x", "stream": True})
        await until(lambda: log.access)
    assert (log.access[0]["tokens_in"], log.access[0]["tokens_out"]) == (1, 2)


async def test_one_line_each(log: Log, http: aiohttp.ClientSession) -> None:
    """Concurrent requests on shared connections have a line each, with their own id and their own cost."""
    async with serving(fake_context(FakeEngine(token_length=len))) as url:

        async def call(i: int) -> None:
            headers = {"X-Request-Id": f"r{i}"}
            body = {"prompt": "x" * (i + 1), "stream": bool(i % 2)}
            async with http.post(url + "/complete", json=body, headers=headers) as response:
                await response.read()

        await asyncio.gather(*(call(i) for i in range(20)))
        await until(lambda: len(log.access) >= 20)
    assert sorted((line["request_id"], line["tokens_in"]) for line in log.access) == sorted(
        (f"r{i}", i + 1) for i in range(20)
    )


@pytest.mark.parametrize(("path", "body"), BODIES.items())
@pytest.mark.parametrize("logged", [False, True])
@pytest.mark.parametrize("stream", [False, True])
async def test_prompts(
    log: Log, http: aiohttp.ClientSession, path: str, body: dict[str, Any], logged: bool, stream: bool
) -> None:
    """What people write is logged only where LOG_PROMPTS says so, and then with the request's id; answers never are."""
    async with serving(log_prompts=logged) as url:
        async with http.post(url + path, json=body | {"stream": stream}, headers={"X-Request-Id": "mine"}) as response:
            await response.read()
        await until(lambda: log.access)
    told = [line for line in log.lines if "prompt" in line]
    if logged:
        (line,) = told
        assert line["prompt"] == body.get("prompt", body.get("messages"))
        assert line["request_id"] == "mine"
    else:
        assert PROMPT not in log.stream.getvalue()
    assert "Hello" not in log.stream.getvalue()


@pytest.mark.parametrize("prompt", ["\ud800", "a\nb\u2028\x1b[31m", 5, None, {"a": [1]}])
async def test_prompts_of_any_kind(log: Log, http: aiohttp.ClientSession, prompt: object) -> None:
    """A prompt that is none, or that cannot be encoded, neither breaks the log nor forges a line in it."""
    async with serving(log_prompts=True) as url:
        async with http.post(url + "/generate", json={"prompt": prompt}) as response:
            assert response.status in (200, 400)
        await until(lambda: log.access)
    assert [line["prompt"] for line in log.lines if "prompt" in line] == [prompt]
    assert len(log.access) == 1


async def test_wrong_requests_log_no_prompt(log: Log, http: aiohttp.ClientSession) -> None:
    """A refused request's text is not logged by way of its error."""
    async with serving() as url:
        for body in ({"prompt": PROMPT, "top_k": PROMPT}, {"prompt": {"x": PROMPT}}, {"messages": PROMPT}):
            async with http.post(url + "/generate", json=body) as response:
                assert response.status == 400
        await until(lambda: len(log.access) == 3)
    assert PROMPT not in log.stream.getvalue()
