"""A service with rate limits on a fake model, for tests of remaining quotas."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import http_sf

from handlers.context import Context
from runtime.keys.records import KeyRecord, digest, new_key
from runtime.types import Caller
from tests.support.fakes import FakeEngine, fake_context, serving

# 95 of these tokens may be used at once; the rest is refilled so slowly (12 s each) that it cannot affect a test.
HUNDRED = {"rate_limit_burst": 0.95, "rate_limit_requests_per_minute": 0, "rate_limit_tokens_per_minute": 100}
ASK: dict[str, Any] = {"prompt": "x", "max_new_tokens": 10}
COST = 4  # the fake's prompt is one token, and its answer three


@asynccontextmanager
async def limited(ctx: Context | FakeEngine | None = None, **settings: Any) -> AsyncIterator[aiohttp.ClientSession]:
    """Run the service with rate limits, and yield a client session."""
    ctx = fake_context(ctx) if isinstance(ctx, FakeEngine) else ctx
    async with serving(ctx, rate_limit_enabled=True, **settings) as url, aiohttp.ClientSession(url) as session:
        yield session


@dataclass
class Answer:
    """An HTTP response; ``policy`` and ``left`` are its rate-limit headers, by the quota's name."""

    status: int
    headers: Any
    body: Any
    policy: dict[str, dict[str, Any]]
    left: dict[str, dict[str, Any]]


async def ask(
    session: aiohttp.ClientSession, path: str = "/model-info", payload: Any = None, method: str = "", **headers: str
) -> Answer:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    method = method or ("GET" if payload is None else "POST")
    async with session.request(method, path, json=payload, headers=names) as response:
        raw = await response.read()
        body = await response.json(content_type=None) if raw.startswith(b"{") else raw.decode()
        fields = [
            dict(http_sf.parse(value.encode(), tltype="list")) if (value := response.headers.get(name)) else {}
            for name in ("RateLimit-Policy", "RateLimit")
        ]
        return Answer(response.status, response.headers, body, fields[0], fields[1])


async def tokens_left(session: aiohttp.ClientSession) -> int:
    return int((await ask(session)).left["tokens"]["r"])


def key_of(name: str, **own: int) -> tuple[str, str]:
    """Return a new API key and its record."""
    key = new_key()
    caller = Caller(name, name, frozenset({"*"}), **own)
    return key, KeyRecord(caller, time.time(), None, digest(key)).line()
