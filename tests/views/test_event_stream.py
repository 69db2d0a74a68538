"""views.event_stream: comments keep a silent stream open."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import pytest

from runtime.errors import TooManyRequests
from tests.support.fakes import FakeEngine, fake_context, serving

BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}], "stream": True}


async def read(engine: FakeEngine) -> tuple[int, list[str]]:
    """Return the status and the parts of a stream."""
    async with (
        serving(fake_context(engine), response_cache="off") as url,
        aiohttp.ClientSession() as session,
        session.post(f"{url}/v1/chat/completions", json=BODY) as response,
    ):
        return response.status, (await response.text()).split("\n\n")


async def test_comments_while_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Comments come before the first event and between events, and the events are those of any stream."""
    _, plain = await read(FakeEngine())
    assert not any(part.startswith(":") for part in plain)
    monkeypatch.setattr("views.event_stream.KEEP_ALIVE_SECONDS", 0.02)
    status, parts = await read(FakeEngine(pause=0.1))
    assert status == 200
    assert parts[0] == ": keep-alive"
    assert parts.count(": keep-alive") >= 3
    assert [part for part in parts if part != ": keep-alive"] == plain


async def test_an_error_behind_a_comment(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is one event, the last; without a comment before it, it is a status."""
    failing = FakeEngine(pause=0.1, fail_after=0, failure=TooManyRequests("full"))
    assert (await read(failing))[0] == 429
    monkeypatch.setattr("views.event_stream.KEEP_ALIVE_SECONDS", 0.02)
    status, parts = await read(failing)
    assert status == 200
    events = [part for part in parts if part and part != ": keep-alive"]
    assert len(events) == 1
    assert '"code":"queue_full"' in events[0]


async def test_lines_have_no_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream of lines of JSON, which is Ollama's default, has nothing but lines of JSON, however slow it is."""
    monkeypatch.setattr("views.event_stream.KEEP_ALIVE_SECONDS", 0.02)
    async with (
        serving(fake_context(FakeEngine(pause=0.1)), response_cache="off") as url,
        aiohttp.ClientSession() as session,
        session.post(f"{url}/api/chat", json={"messages": BODY["messages"]}) as response,
    ):
        assert response.content_type == "application/x-ndjson"
        lines = [json.loads(line) for line in (await response.text()).splitlines()]
    assert [line["message"]["content"] for line in lines] == ["Hello", " there", ".", ""]
