"""OpenAI's own client against files and batches: its code for batches runs as it is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from handlers.context import Context
from runtime.keys.records import KeyRecord, digest, new_key
from runtime.types import Caller
from tests.support.batches import chats, input_text, storing
from tests.support.fakes import FakeEngine, fake_context, serving, until


@asynccontextmanager
async def _client(
    folder: Path, ctx: Context | None = None, key: str = "none", **settings: Any
) -> AsyncIterator[AsyncOpenAI]:
    async with (
        serving(storing(folder, ctx), files_dir=folder, **settings) as url,
        AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=10) as client,
    ):
        yield client


async def _ended(client: AsyncOpenAI, batch_id: str) -> Any:
    async with asyncio.timeout(20):
        while True:
            batch = await client.batches.retrieve(batch_id)
            if batch.status in ("completed", "failed", "expired", "cancelled"):
                return batch
            await asyncio.sleep(0.01)


async def _create(client: AsyncOpenAI, text: str, endpoint: Any = "/v1/chat/completions", **fields: Any) -> Any:
    file = await client.files.create(file=("in.jsonl", text.encode()), purpose="batch")
    return await client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h", **fields)


async def test_a_batch(tmp_path: Path) -> None:
    """Upload, create, retrieve, download and delete; answers are those of the endpoint, errors have their status."""
    async with _client(tmp_path) as client:
        created = await _create(client, input_text([*chats(20), {"messages": []}]), metadata={"name": "é"})
        assert (created.status, created.metadata) == ("validating", {"name": "é"})
        batch = await _ended(client, created.id)
        assert (batch.status, batch.errors) == ("completed", None)
        counts = batch.request_counts
        assert (counts.total, counts.completed, counts.failed) == (21, 20, 1)
        assert (batch.usage.input_tokens, batch.usage.output_tokens) == (20, 60)
        output = await client.files.content(batch.output_file_id)
        lines = [json.loads(line) for line in output.text.splitlines()]
        assert [line["custom_id"] for line in lines] == [f"row-{number}" for number in range(20)]
        assert {line["response"]["body"]["choices"][0]["message"]["content"] for line in lines} == {"Hello there."}
        (error,) = [json.loads(line) for line in (await client.files.content(batch.error_file_id)).text.splitlines()]
        assert (error["custom_id"], error["response"]["status_code"]) == ("row-20", 400)
        assert error["response"]["body"]["error"]["param"] == "messages"
        for file_id in (batch.input_file_id, batch.output_file_id, batch.error_file_id):
            assert (await client.files.delete(file_id)).deleted
        assert [file async for file in client.files.list()] == []


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/responses", {"input": "x"}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 9}),
        ("/complete", {"prompt": "x"}),
        ("/generate", {"prompt": "x"}),
        ("/models/compare", {"prompt": "x", "variants": [{}]}),
    ],
)
async def test_endpoints(tmp_path: Path, endpoint: Any, body: dict[str, Any]) -> None:
    """Every generating operation can be an endpoint; errors have its route's form. All of it is background work."""
    engine = FakeEngine()
    async with _client(tmp_path, fake_context(engine)) as client:
        batch = await _ended(client, (await _create(client, input_text([body, {}], endpoint), endpoint)).id)
        (line,) = (await client.files.content(batch.output_file_id)).text.splitlines()
        assert "Hello there." in json.dumps(json.loads(line)["response"]["body"])
        (line,) = (await client.files.content(batch.error_file_id)).text.splitlines()
        error = json.loads(line)["response"]["body"]
        assert ("error" in error) == endpoint.startswith("/v1")
    assert {job.background for jobs in engine.jobs for job in jobs} == {True}


async def test_a_wrong_input_file(tmp_path: Path) -> None:
    """The batch fails, and its errors have lines."""
    async with _client(tmp_path) as client:
        batch = await _ended(client, (await _create(client, input_text(chats(1)) + "{\n")).id)
    assert batch.status == "failed"
    assert [(error.line, error.code) for error in batch.errors.data] == [(2, "invalid_json_line")]
    assert batch.failed_at is not None


async def test_cancel(tmp_path: Path) -> None:
    """A batch is cancelled while its rows run; nothing runs afterwards."""
    engine = FakeEngine(pause=30)
    async with _client(tmp_path, fake_context(engine)) as client:
        created = await _create(client, input_text(chats(100)))
        await until(lambda: engine.open_streams)
        assert (await client.batches.cancel(created.id)).status in ("cancelling", "cancelled")
        batch = await _ended(client, created.id)
        assert (batch.status, batch.output_file_id) == ("cancelled", None)
        lines = (await client.files.content(batch.error_file_id)).text.splitlines()
        assert len(lines) == 100
        assert engine.open_streams == 0


async def test_lists(tmp_path: Path) -> None:
    """The client's iteration follows the pages to the end."""
    async with _client(tmp_path) as client:
        created = [await _create(client, input_text(chats(1))) for _ in range(5)]
        assert [batch.id async for batch in client.batches.list(limit=2)] == [batch.id for batch in reversed(created)]
        files = [file.id async for file in client.files.list(limit=2, order="asc", purpose="batch")]
        assert files == [batch.input_file_id for batch in created]


def test_synchronous_client(tmp_path: Path) -> None:
    """The synchronous client works, too, with a path as the file, and with a lifetime."""
    (tmp_path / "in.jsonl").write_text(input_text(chats(3)))

    def ask(url: str) -> list[str]:
        with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=10) as client:
            file = client.files.create(
                file=tmp_path / "in.jsonl", purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
            )
            assert file.expires_at == file.created_at + 3600
            assert client.files.wait_for_processing(file.id).filename == "in.jsonl"
            batch = client.batches.create(
                input_file_id=file.id,
                endpoint="/v1/chat/completions",
                completion_window="24h",
                output_expires_after={"anchor": "created_at", "seconds": 7200},
            )
            while batch.status != "completed":
                batch = client.batches.retrieve(batch.id)
            output = client.files.retrieve(batch.output_file_id or "")
            assert output.expires_at == output.created_at + 7200
            return client.files.content(output.id).text.splitlines()

    async def run() -> list[str]:
        async with serving(storing(tmp_path / "files"), files_dir=tmp_path / "files") as url:
            return await asyncio.to_thread(ask, url)

    assert len(asyncio.run(run())) == 3


async def test_keys(tmp_path: Path) -> None:
    """Files and batches are their key's; the scope allows all their routes, and the endpoint's scope is needed too."""
    keys, records = zip(
        *(_key(name, scopes) for name, scopes in (("a", "chat create_batch"), ("b", "*"), ("c", "chat"))), strict=True
    )
    settings: dict[str, Any] = {"api_keys": "\n".join(records)}
    async with _client(tmp_path, key=keys[0], **settings) as client:
        batch = await _ended(client, (await _create(client, input_text(chats(1)))).id)
        assert batch.status == "completed"
        with pytest.raises(openai.PermissionDeniedError, match="'completions'"):
            await _create(client, input_text([{"prompt": "x"}], "/v1/completions"), "/v1/completions")
        other = client.with_options(api_key=keys[1])
        for call in (
            other.batches.retrieve(batch.id),
            other.batches.cancel(batch.id),
            other.files.retrieve(batch.output_file_id),
            other.files.content(batch.output_file_id),
            other.files.delete(batch.output_file_id),
            other.batches.create(
                input_file_id=batch.input_file_id, endpoint="/v1/chat/completions", completion_window="24h"
            ),
        ):
            with pytest.raises(openai.NotFoundError):
                await call
        assert [file async for file in other.files.list()] == []
        assert [found async for found in other.batches.list()] == []
        with pytest.raises(openai.PermissionDeniedError):
            await client.with_options(api_key=keys[2]).batches.list()


def _key(name: str, scopes: str) -> tuple[str, str]:
    key = new_key()
    return key, KeyRecord(Caller(name, name, frozenset(scopes.split())), 0, None, digest=digest(key)).line()
