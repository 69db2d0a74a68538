"""OpenAI's own client against chat completions: both of its kinds, its helpers, loops of agents, and refusals."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from handlers.context import Context
from runtime.keys.records import KeyRecord, digest, new_key
from runtime.types import Caller
from tests.support.fakes import FakeEngine, fake_context, serving

ASK: dict[str, Any] = {"model": "fake", "messages": [{"role": "user", "content": "Time?"}]}
CALL = ("I look.\n", "<tool_call>\n", '{"name": "time", "arguments": {"zone": ', '"UTC"}}\n', "</tool_call>")
PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {"zone": {"type": "string"}},
    "required": ["zone"],
    "additionalProperties": False,
}
TOOL: Any = {"type": "function", "function": {"name": "time", "parameters": PARAMETERS, "strict": True}}


class City(BaseModel):
    """A city, as a format of the answer."""

    name: str


@asynccontextmanager
async def _client(ctx: Context | None = None, key: str = "none needed", **settings: Any) -> AsyncIterator[AsyncOpenAI]:
    async with (
        serving(ctx, **settings) as url,
        AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=10) as client,
    ):
        yield client


def test_synchronous_client() -> None:
    """The synchronous client works, too: whole, streamed, through its helper, and for completions and models."""

    def ask(url: str) -> tuple[Any, ...]:
        with OpenAI(base_url=f"{url}/v1", api_key="none needed", max_retries=0, timeout=10) as client:
            whole = client.chat.completions.create(**ASK).choices[0].message.content
            chunks = client.chat.completions.create(**ASK, stream=True)
            pieces = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            with client.chat.completions.stream(**ASK) as stream:
                final = stream.get_final_completion().choices[0].message.content
            completed = client.completions.create(model="fake", prompt="x").choices[0].text
            return whole, pieces, final, completed, [model.id for model in client.models.list()]

    async def run() -> tuple[Any, ...]:
        async with serving() as url:
            return await asyncio.to_thread(ask, url)

    assert asyncio.run(run()) == (*["Hello there."] * 4, ["fake"])


async def test_parse() -> None:
    """A format given as a model is sent as its schema, and the text comes back as an object, whole and streamed."""
    engine = FakeEngine(words=('{"name":', '"Rome"}'))
    async with _client(fake_context(engine)) as client:
        parsed = await client.chat.completions.parse(**ASK, response_format=City)
        async with client.chat.completions.stream(**ASK, response_format=City) as stream:
            streamed = await stream.get_final_completion()
    assert parsed.choices[0].message.parsed == streamed.choices[0].message.parsed == City(name="Rome")
    grammar = engine.jobs[0][0].params.grammar
    assert grammar is not None
    assert json.loads(grammar.definition)["properties"].keys() == {"name"}


async def test_parse_of_an_answer_that_is_cut_off() -> None:
    """An answer that max_tokens cuts off is the client's LengthFinishReasonError, with the tokens that it took."""
    async with _client() as client:
        with pytest.raises(openai.LengthFinishReasonError) as caught:
            await client.chat.completions.parse(**ASK, response_format=City, max_tokens=1)
    assert caught.value.completion.usage is not None
    assert caught.value.completion.usage.completion_tokens == 1


async def test_parsed_tool_call() -> None:
    """The arguments of a call of a strict function come back as an object."""
    tool = openai.pydantic_function_tool(City, name="time")
    engine = FakeEngine(("<tool_call>\n", '{"name": "time", "arguments": {"name": "Rome"}}\n', "</tool_call>"))
    async with _client(fake_context(engine)) as client:
        answer = await client.chat.completions.parse(**ASK, tools=[tool], tool_choice="required")
    (call,) = answer.choices[0].message.tool_calls or ()
    assert call.function.parsed_arguments == City(name="Rome")


@pytest.mark.parametrize("stream", [False, True])
async def test_agent_loop(stream: bool) -> None:
    """A loop of call, result and answer, with the client's own objects in the history, comes to its end."""
    engine = FakeEngine(CALL)
    turns: list[Any] = [*ASK["messages"]]
    reasons = []
    async with _client(fake_context(engine)) as client:
        while True:
            asked = ASK | {"messages": turns, "tools": [TOOL]}
            if stream:
                async with client.chat.completions.stream(**asked) as events:
                    answer: Any = await events.get_final_completion()
            else:
                answer = await client.chat.completions.create(**asked)
            (choice,) = answer.choices
            reasons.append(choice.finish_reason)
            turns.append(choice.message)
            if choice.finish_reason != "tool_calls":
                break
            for call in choice.message.tool_calls:
                assert json.loads(call.function.arguments) == {"zone": "UTC"}
                turns.append({"role": "tool", "tool_call_id": call.id, "content": "noon"})
            if len(turns) > 4:
                engine.words = ("Noon.",)
    assert reasons == ["tool_calls", "tool_calls", "stop"]
    assert turns[-1].content == "Noon."
    assert [turn.role for turn in engine.chats[-1]] == ["user", "assistant", "tool", "assistant", "tool"]


async def test_a_call_that_was_cut_off_goes_back() -> None:
    """An answer whose call max_tokens cut off may be returned with the error, as agents do."""
    engine = FakeEngine(CALL)
    async with _client(fake_context(engine)) as client:
        answer = await client.chat.completions.create(**ASK, tools=[TOOL], max_tokens=3)
        (choice,) = answer.choices
        assert choice.finish_reason == "length"
        (call,) = choice.message.tool_calls or ()
        error: Any = {"role": "tool", "tool_call_id": call.id, "content": "these arguments are no JSON"}
        await client.chat.completions.create(
            model="fake", messages=[*ASK["messages"], choice.message.model_dump(), error], tools=[TOOL]
        )
    assert engine.chats[-1][1].tool_calls[0].arguments == '{"zone": '


@pytest.mark.parametrize("stream", [False, True])
async def test_wrong_key(stream: bool) -> None:
    """A key that is not valid is the client's AuthenticationError."""
    key = new_key()
    record = KeyRecord(Caller("k", "test", frozenset({"*"})), 0, None, digest=digest(key))
    async with _client(api_keys=record.line()) as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            await client.chat.completions.create(**ASK, stream=stream)
        assert caught.value.code == "invalid_api_key"
        right = client.with_options(api_key=key)
        assert (await right.chat.completions.create(**ASK)).choices


async def test_too_many_requests() -> None:
    """A caller beyond its limit is the client's RateLimitError, which says when to come again."""
    key = new_key()
    record = KeyRecord(Caller("k", "test", frozenset({"*"}), requests_per_minute=1), 0, None, digest=digest(key))
    async with _client(key=key, api_keys=record.line(), rate_limit_enabled=True) as client:
        with pytest.raises(openai.RateLimitError) as caught:
            await asyncio.gather(*[client.chat.completions.create(**ASK) for _ in range(3)])
    assert int(caught.value.response.headers["Retry-After"]) > 0
