"""OpenAI's own client asks for embeddings, which come through the cache, the limits and batches as answers do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import openai
import pytest
from openai import AsyncOpenAI

from handlers.context import Context
from tests.support.batches import input_text, storing
from tests.support.fake_encoder import FakeEncoder
from tests.support.fakes import caching, fake_context, serving


@asynccontextmanager
async def _client(ctx: Context | None = None, **settings: Any) -> AsyncIterator[AsyncOpenAI]:
    async with (
        serving(ctx, **settings) as url,
        AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=10) as client,
    ):
        yield client


async def test_embeddings() -> None:
    """The client asks for base64 and decodes it; numbers are the same vectors."""
    async with _client() as client:
        found = await client.embeddings.create(model="fake", input=["abc", "x"])
        numbers = await client.embeddings.create(model="fake", input=["abc", "x"], encoding_format="float")
        short = await client.embeddings.create(model="fake", input="abc", dimensions=2, user="u")
    vectors = [np.array([one.embedding for one in answer.data], np.float32) for answer in (found, numbers)]
    assert np.array_equal(*vectors)
    assert len(short.data[0].embedding) == 2
    assert (found.object, found.model, found.usage.prompt_tokens, found.usage.total_tokens) == ("list", "fake", 8, 8)
    assert [one.index for one in found.data] == [0, 1]


async def test_errors() -> None:
    """The client's own exceptions, with the field and both numbers."""
    async with _client() as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.embeddings.create(model="fake", input=["x", "a" * 99])
        assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "input.1")
        with pytest.raises(openai.NotFoundError):
            await client.embeddings.create(model="text-embedding-3-small", input="x")


async def test_cache_headers() -> None:
    """As with answers: headers say what the cache had to do with it, and its usage does."""
    async with _client(caching(fake_context(), lambda: 1000.0)) as client:
        uses = []
        for given in ("x", ["x", "y"], ["y", "x"]):
            raw = await client.embeddings.with_raw_response.create(model="fake", input=given)
            uses.append((raw.headers["X-Cache"], raw.headers.get("X-Cache-Key") is not None, raw.headers.get("Age")))
            assert raw.parse().usage.cache["status"] == raw.headers["X-Cache"].lower()  # type: ignore[union-attr]
    assert uses == [("MISS", True, None), ("MISS", False, None), ("HIT", False, "0")]


async def test_limit_of_tokens() -> None:
    """The tokens of inputs count against the caller's limit; those of cached vectors do not."""
    limits = {"rate_limit_enabled": True, "rate_limit_tokens_per_minute": 60, "rate_limit_burst": 0.95}
    async with _client(caching(fake_context()), **limits) as client:
        for _ in range(3):
            await client.embeddings.create(model="fake", input="a" * 38)
        with pytest.raises(openai.RateLimitError) as caught:
            await client.embeddings.create(model="fake", input="b" * 38)
        assert caught.value.code == "rate_limited"
        with pytest.raises(openai.BadRequestError) as exceeds:
            await client.embeddings.create(model="fake", input="b" * 90)
        assert exceeds.value.code == "exceeds_rate_limit"


async def test_batch(tmp_path: Path) -> None:
    """The rows of a batch are requests for embeddings."""
    ctx = storing(tmp_path, fake_context(FakeEncoder()))
    async with _client(ctx, files_dir=tmp_path) as client:
        text = input_text([{"input": "abc"}, {"input": ["x", "y"]}], "/v1/embeddings")
        file = await client.files.create(file=("in.jsonl", text.encode()), purpose="batch")
        batch = await client.batches.create(input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h")
        async with asyncio.timeout(20):
            while batch.status != "completed":
                await asyncio.sleep(0.01)
                batch = await client.batches.retrieve(batch.id)
        assert (batch.request_counts.completed, batch.usage.input_tokens) == (2, 11)  # type: ignore[union-attr]
        output = await client.files.content(batch.output_file_id or "")
    answers = [json.loads(line)["response"]["body"] for line in output.text.splitlines()]
    assert [len(answer["data"]) for answer in answers] == [1, 2]


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
async def test_rerank_routes(path: str) -> None:
    """The paths that clients of Cohere, Jina and vLLM ask at are one operation."""
    async with (
        serving() as url,
        aiohttp.ClientSession(url) as session,
        session.post(path, json={"query": "a", "documents": ["b", "a"]}) as response,
    ):
        answer = await response.json()
    assert answer["results"][0]["index"] == 1
