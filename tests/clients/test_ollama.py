"""Ollama's own client against the service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import ollama
import pytest
from ollama import AsyncClient, ResponseError
from pydantic import BaseModel

from handlers.context import Context
from runtime.answer_format import AnswerFormat
from runtime.errors import ModelLoading, TooManyRequests
from runtime.keys.records import KeyRecord, digest, new_key
from runtime.types import Caller
from tests.support.fake_encoder import FakeEncoder
from tests.support.fakes import INFO, FakeEngine, fake_context, serving, until

HI = [{"role": "user", "content": "Hi"}]
CALL = ("I look.\n", "<tool_call>\n", '{"name": "add", "arguments": {"a": 2, ', '"b": 3}}\n', "</tool_call>")


class City(BaseModel):
    """A city, as a format of the answer."""

    name: str


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: one number.
        b: the other number.
    """
    return a + b


@asynccontextmanager
async def _client(ctx: Context | None = None, key: str | None = None, **settings: Any) -> AsyncIterator[AsyncClient]:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    async with serving(ctx, **settings) as url:
        yield AsyncClient(host=url, headers=headers, timeout=10)


async def _read(client: AsyncClient, texts: list[str | None]) -> None:
    async for part in await client.chat("fake", HI, stream=True):
        texts.append(part.message.content)  # noqa: PERF401 - they are there when the stream fails, too


async def test_chat() -> None:
    """A message, with everything that the client offers; names may have Ollama's tag."""
    engine = FakeEngine(token_length=9)
    async with _client(fake_context(engine)) as client:
        answer = await client.chat(
            "fake:latest",
            HI,
            think=False,
            logprobs=True,
            top_logprobs=2,
            keep_alive="5m",
            options=ollama.Options(temperature=0.5, num_predict=50, num_ctx=512, stop=["x"]),
        )
    assert (answer.model, answer.message.role, answer.message.content) == ("fake", "assistant", "Hello there.")
    assert (answer.done, answer.done_reason, answer.prompt_eval_count, answer.eval_count) == (True, "stop", 9, 3)
    assert answer.logprobs is not None
    assert [len(entry.top_logprobs or ()) for entry in answer.logprobs] == [2, 2, 2]
    params = engine.jobs[0][0].params
    assert (params.max_new_tokens, params.stop, params.temperature) == (50, ("x",), 0.5)


async def test_stream() -> None:
    """The client reads line by line."""
    async with _client() as client:
        parts = [part async for part in await client.chat("fake", HI, stream=True)]
    assert [part.message.content for part in parts] == ["Hello", " there", ".", ""]
    assert [part.done for part in parts] == [False, False, False, True]


async def test_format() -> None:
    """A schema is followed."""
    engine = FakeEngine(words=('{"name": ', '"Paris"}'))
    async with _client(fake_context(engine)) as client:
        answer = await client.chat("fake", HI, format=City.model_json_schema())
    assert City.model_validate_json(answer.message.content or "") == City(name="Paris")
    assert engine.jobs[0][0].params.grammar is not None


async def test_tools() -> None:
    """The client makes a tool of a function, and its answer to the call goes back."""
    engine = FakeEngine(words=CALL)
    async with _client(fake_context(engine)) as client:
        answer = await client.chat("fake", HI, tools=[add])
        (call,) = answer.message.tool_calls or ()
        result = add(**call.function.arguments)
        messages = [*HI, answer.message, {"role": "tool", "content": str(result), "tool_name": "add"}]
        await client.chat("fake", messages, tools=[add])
    assert (call.function.name, result) == ("add", 5)
    asked, told = engine.chats[1][-2:]
    assert told.tool_call_id == asked.tool_calls[0].id


async def test_reasoning() -> None:
    """It is apart from the content."""
    engine = FakeEngine(words=("<think>", "Hm.", "</think>", "Yes."), answer_format=AnswerFormat(reasoning="optional"))
    async with _client(fake_context(engine)) as client:
        answer = await client.chat("fake", HI, think=True)
    assert (answer.message.thinking, answer.message.content) == ("Hm.", "Yes.")


async def test_generate() -> None:
    """A prompt, as a message and raw; without one the model is loaded."""
    engine = FakeEngine()
    async with _client(fake_context(engine)) as client:
        assert (await client.generate("fake", "Hi", system="Be brief.")).response == "Hello there."
        assert (await client.generate("fake", "Hi", raw=True)).response == "Hello there."
        parts = [part.response async for part in await client.generate("fake", "Hi", stream=True)]
        assert parts == ["Hello", " there", ".", ""]
        assert (await client.generate("fake")).done_reason == "load"
    assert [len(chat) for chat in engine.chats] == [2, 1]


async def test_models() -> None:
    """What is served, what is loaded, and what it is."""
    async with _client(fake_context(FakeEngine(info=replace(INFO, chat_template=True)))) as client:
        assert [model.model for model in (await client.list()).models] == ["fake"]
        assert [model.name for model in (await client.ps()).models] == ["fake"]
        assert "tools" in ((await client.show("fake")).capabilities or ())


async def test_embed() -> None:
    """Vectors of several texts, and of one."""
    async with _client(fake_context(FakeEncoder())) as client:
        assert len((await client.embed("fake", ["a", "b"])).embeddings) == 2
        assert len((await client.embeddings("fake", "a")).embedding) == len(
            (await client.embed("fake", "a")).embeddings[0]
        )


@pytest.mark.parametrize(
    ("failure", "status"), [(TooManyRequests("full"), 429), (ModelLoading("loading", retry_after=1), 503)]
)
async def test_errors(failure: Exception, status: int) -> None:
    """The client's own exception has the status and the message; also that of a stream before its first line."""
    async with _client(fake_context(FakeEngine(fail_after=0, failure=failure))) as client:
        with pytest.raises(ResponseError, match=str(failure)) as caught:
            await client.chat("fake", HI)
        assert caught.value.status_code == status
        with pytest.raises(ResponseError, match=str(failure)) as caught:
            await _read(client, [])
        assert caught.value.status_code == status


async def test_error_within_a_stream() -> None:
    """It is the last line, which the client raises."""
    async with _client(fake_context(FakeEngine(fail_after=2, failure=TooManyRequests("full")))) as client:
        texts: list[str | None] = []
        with pytest.raises(ResponseError, match="full"):
            await _read(client, texts)
    assert texts == ["Hello", " there"]


async def test_what_is_refused() -> None:
    """Models that are not served, options that nothing here does, and routes that change a library of models."""
    async with _client() as client:
        for call, status, message in (
            (client.chat("other", HI), 404, "no model"),
            (client.chat("fake", HI, options={"mirostat": 1}), 400, "options.mirostat"),
            (client.pull("fake"), 404, "no route"),
        ):
            with pytest.raises(ResponseError, match=message) as caught:
                await call
            assert caught.value.status_code == status


async def test_keys() -> None:
    """A key with the scope ``chat`` may chat; one without may not."""
    good, bad = new_key(), new_key()
    records = [
        KeyRecord(Caller(name, name, frozenset({scope})), 0, None, digest=digest(key))
        for name, key, scope in (("a", good, "chat"), ("b", bad, "tokenize"))
    ]
    keys = "\n".join(record.line() for record in records)
    for key, status in ((good, 200), (bad, 403), (None, 401)):
        async with _client(key=key, api_keys=keys) as client:
            if status == 200:
                assert (await client.chat("fake", HI)).done
                continue
            with pytest.raises(ResponseError) as caught:
                await client.chat("fake", HI)
            assert caught.value.status_code == status


async def test_leaving_a_stream() -> None:
    """The generation of a client that goes away stops."""
    engine = FakeEngine(words=("x ",) * 10_000, pause=0.01)
    async with _client(fake_context(engine)) as client:
        async for _ in await client.chat("fake", HI, stream=True):
            break
        await client._client.aclose()
        await until(lambda: engine.open_streams == 0)
    assert engine.generated < 1000
