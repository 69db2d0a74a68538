"""Anthropic's own client against the service."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic, AsyncAnthropic
from pydantic import BaseModel

from handlers.context import Context
from runtime.answer_format import AnswerFormat
from runtime.errors import DeadlineExceeded, Draining, ModelLoading, TooManyRequests
from runtime.keys.records import KeyRecord, digest, new_key
from runtime.types import Caller
from tests.support.fakes import INFO, FakeEngine, fake_context, serving, until

HI: list[Any] = [{"role": "user", "content": "Hi"}]
ASK: dict[str, Any] = {"model": "fake", "max_tokens": 50, "messages": HI}

TIME: Any = {"name": "time", "description": "The time.", "input_schema": {"type": "object", "properties": {"zone": {}}}}
USE: Any = {"type": "tool_use", "id": "c1", "name": "time", "input": {}}
CALL = ("I look.\n", "<tool_call>\n", '{"name": "time", "arguments": {"zone": ', '"UTC"}}\n', "</tool_call>")


class City(BaseModel):
    """A city, as a format of the answer."""

    name: str


@asynccontextmanager
async def _client(
    ctx: Context | None = None, key: str = "none needed", **settings: Any
) -> AsyncIterator[AsyncAnthropic]:
    async with (
        serving(ctx, **settings) as url,
        AsyncAnthropic(base_url=url, api_key=key, max_retries=0, timeout=10) as client,
    ):
        yield client


async def test_create() -> None:
    """A plain message, with everything the client offers as attributes."""
    engine = FakeEngine(token_length=9, cached_tokens=8)
    async with _client(fake_context(engine)) as client:
        message = await client.messages.create(
            **ASK,
            system="Be brief.",
            stop_sequences=["x"],
            metadata={"user_id": "me"},
            service_tier="auto",
            thinking={"type": "disabled"},
            extra_body={"temperature": 0.5, "top_p": 0.5, "top_k": 3, "seed": 7},
        )
    assert (message.id, message.type, message.role, message.model) == ("msg_id1", "message", "assistant", "fake")
    (block,) = message.content
    assert block.type == "text"
    assert block.text == "Hello there."
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    usage = message.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (1, 8, 3)
    params = engine.jobs[0][0].params
    assert (params.max_new_tokens, params.stop, params.temperature) == (50, ("x",), 0.5)
    assert (params.top_p, params.top_k, params.seed) == (0.5, 3, 7)
    assert [(turn.role, turn.content) for turn in engine.chats[0]] == [("system", "Be brief."), ("user", "Hi")]


def test_every_member_has_its_type() -> None:
    """The client's own model of a message accepts ours strictly, which the client itself does not check."""

    async def create() -> Any:
        async with _client() as client:
            return await client.messages.create(**ASK)

    message = asyncio.run(create())
    type(message).model_validate(message.model_dump(by_alias=True))


def test_synchronous_client() -> None:
    """The synchronous client works, too, whole and streamed."""

    async def run() -> tuple[str, str]:
        async with serving() as url:

            def ask() -> tuple[str, str]:
                with Anthropic(base_url=url, api_key="none needed", max_retries=0, timeout=10) as client:
                    (block,) = client.messages.create(**ASK).content
                    with client.messages.stream(**ASK) as stream:
                        return getattr(block, "text", ""), stream.get_final_text()

            return await asyncio.to_thread(ask)

    assert asyncio.run(run()) == ("Hello there.", "Hello there.")


async def test_answer_put_back() -> None:
    """The content of a message is part of the next request's history, as the client's objects or their dumps."""
    engine = FakeEngine()
    more: Any = {"role": "user", "content": "And?"}
    async with _client(fake_context(engine)) as client:
        first = await client.messages.create(**ASK)
        turns = [*HI, {"role": "assistant", "content": first.content}, more]
        await client.messages.create(**ASK | {"messages": turns})
        dumped = [block.model_dump() for block in first.content]
        await client.messages.create(**ASK | {"messages": [*HI, {"role": "assistant", "content": dumped}, more]})
    assert [(turn.role, turn.content) for turn in engine.chats[1]] == [
        ("user", "Hi"),
        ("assistant", "Hello there."),
        ("user", "And?"),
    ]
    assert engine.chats[1] == engine.chats[2]


async def test_cache_breakpoints() -> None:
    """cache_control is accepted wherever Anthropic has it."""
    mark: Any = {"type": "ephemeral"}
    async with _client() as client:
        message = await client.messages.create(
            model="fake",
            max_tokens=50,
            cache_control=mark,
            system=[{"type": "text", "text": "Be brief.", "cache_control": mark}],
            messages=[{"role": "user", "content": [{"type": "text", "text": "Hi", "cache_control": mark}]}],
        )
    assert message.stop_reason == "end_turn"


async def test_a_begun_answer() -> None:
    """The assistant's last turn is continued: the message has what follows."""
    engine = FakeEngine()
    begun: Any = [*HI, {"role": "assistant", "content": "I say: "}]
    async with _client(fake_context(engine)) as client:
        message = await client.messages.create(**ASK | {"messages": begun})
    assert message.content[0].to_dict() == {"type": "text", "text": "Hello there."}
    assert engine.template_options[0].continue_final_message


async def test_stream_of_events() -> None:
    """The raw stream yields the events in their order; the client leaves out the ping."""
    async with _client(fake_context(FakeEngine(token_length=9))) as client:
        events = [event async for event in await client.messages.create(**ASK, stream=True)]
    assert [event.type for event in events] == [
        *("message_start", "content_block_start"),
        *["content_block_delta"] * 3,
        *("content_block_stop", "message_delta", "message_stop"),
    ]


async def test_stream_helper() -> None:
    """The client's accumulator follows the events to the final message."""
    async with (
        _client(fake_context(FakeEngine(token_length=9))) as client,
        client.messages.stream(**ASK) as stream,
    ):
        pieces = [piece async for piece in stream.text_stream]
        final = await stream.get_final_message()
    assert pieces == ["Hello", " there", "."]
    assert (final.stop_reason, final.usage.input_tokens, final.usage.output_tokens) == ("end_turn", 9, 3)
    (block,) = final.content
    assert block.type == "text"
    assert block.text == "Hello there."


async def test_cut_off() -> None:
    """max_tokens is the reason when it cuts a text off, whole and streamed."""
    async with _client() as client:
        message = await client.messages.create(**ASK | {"max_tokens": 1})
        async with client.messages.stream(**ASK | {"max_tokens": 1}) as stream:
            streamed = await stream.get_final_message()
    assert (message.stop_reason, streamed.stop_reason) == ("max_tokens", "max_tokens")


async def test_stop_sequence() -> None:
    """The stop sequence that ended the text is named, whole and streamed."""
    async with _client(fake_context(FakeEngine(stop_string="x"))) as client:
        message = await client.messages.create(**ASK, stop_sequences=["y", "x"])
        async with client.messages.stream(**ASK, stop_sequences=["y", "x"]) as stream:
            streamed = await stream.get_final_message()
        template = await client.messages.create(**ASK)
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "x")
    assert (streamed.stop_reason, streamed.stop_sequence) == ("stop_sequence", "x")
    assert (template.stop_reason, template.stop_sequence) == ("end_turn", None)


async def test_parse() -> None:
    """A format given as a model is sent as its schema, and the text comes back as an object."""
    engine = FakeEngine(words=('{"name":', '"Rome"}'))
    async with _client(fake_context(engine)) as client:
        parsed = await client.messages.parse(**ASK, output_format=City)
    assert parsed.parsed_output == City(name="Rome")
    grammar = engine.jobs[0][0].params.grammar
    assert grammar is not None
    assert json.loads(grammar.definition)["properties"].keys() == {"name"}


async def test_agent_loop() -> None:
    """A tool's use, its result in the next request, and the final answer, as agents do it with the client's objects."""
    engine = FakeEngine(CALL)
    turns: list[Any] = [*HI]
    async with _client(fake_context(engine)) as client:
        for _ in range(2):
            message = await client.messages.create(**ASK | {"messages": turns}, tools=[TIME])
            uses = [block for block in message.content if block.type == "tool_use"]
            results = [{"type": "tool_result", "tool_use_id": use.id, "content": "noon"} for use in uses]
            assert (message.stop_reason, [use.input for use in uses]) == ("tool_use", [{"zone": "UTC"}])
            turns += [{"role": "assistant", "content": message.content}, {"role": "user", "content": results}]
        engine.words = ("Noon.",)
        message = await client.messages.create(**ASK | {"messages": turns}, tools=[TIME])
    assert (message.stop_reason, getattr(message.content[0], "text", "")) == ("end_turn", "Noon.")
    assert [turn.role for turn in engine.chats[-1]] == ["user", "assistant", "tool", "assistant", "tool"]
    calls = [call.id for turn in engine.chats[-1] for call in turn.tool_calls]
    assert [turn.tool_call_id for turn in engine.chats[-1] if turn.role == "tool"] == calls


@pytest.mark.parametrize("stream", [False, True])
async def test_tool_runner(stream: bool) -> None:
    """The client's own loop runs to its end: it asks for a conversation that the server keeps, and goes on without."""
    engine = FakeEngine(CALL)
    asked: list[str] = []

    @anthropic.beta_async_tool
    async def time(zone: str) -> str:
        """The time."""
        asked.append(zone)
        engine.words = ("Noon.",)
        return "noon"

    async with _client(fake_context(engine)) as client:
        runner = client.beta.messages.tool_runner(**ASK, tools=[time], stream=stream)
        message: Any = await runner.until_done()
    assert (asked, message.content[0].text, message.stop_reason) == (["UTC"], "Noon.", "end_turn")
    assert [turn.role for turn in engine.chats[-1]] == ["user", "assistant", "tool"]


async def test_threads() -> None:
    """A conversation that the server would have to keep is refused with the code that the client understands."""
    async with _client() as client:
        with pytest.raises(anthropic.BadRequestError, match="thread: conversations are not kept") as caught:
            await client.beta.messages.create(**ASK, extra_body={"thread": {"type": "create"}})
    body: Any = caught.value.body
    assert body["error"]["details"] == {"error_code": "thread_unsupported_request"}


async def test_streamed_tool_use() -> None:
    """The client's accumulator puts the input of a use together."""
    async with (
        _client(fake_context(FakeEngine(CALL))) as client,
        client.messages.stream(**ASK, tools=[TIME], tool_choice={"type": "auto"}) as stream,
    ):
        message = await stream.get_final_message()
    text, use = message.content
    assert (getattr(text, "text", ""), getattr(use, "input", None)) == ("I look.", {"zone": "UTC"})
    assert message.stop_reason == "tool_use"


async def test_thinking() -> None:
    """Reasoning comes as a thinking block, whole and streamed, and may be put back into the history."""
    form = AnswerFormat(reasoning="optional", visible={"<think>": 0, "</think>": 2})
    engine = FakeEngine(("<think>", "Hm.", "</think>", "Hi."), answer_format=form)
    budget: Any = {"type": "enabled", "budget_tokens": 1024}
    async with _client(fake_context(engine)) as client:
        message = await client.messages.create(**ASK, thinking=budget)
        async with client.messages.stream(**ASK, thinking=budget) as stream:
            streamed = await stream.get_final_message()
        for content in (message.content, streamed.content):
            turns = [*HI, {"role": "assistant", "content": content}, {"role": "user", "content": "And?"}]
            await client.messages.create(**ASK | {"messages": turns})
    assert [block.type for block in message.content] == ["thinking", "text"]
    assert getattr(message.content[0], "thinking", "") == "Hm."
    assert [block.type for block in streamed.content] == ["thinking", "text"]
    assert engine.chats[-2] == engine.chats[-1]
    assert engine.chats[-1][1].reasoning == "Hm."


async def test_count_tokens() -> None:
    """Tokens are counted without generating, and are those that a message of the same fields uses."""
    engine = FakeEngine(token_length=len)
    async with _client(fake_context(engine)) as client:
        count = await client.messages.count_tokens(model="fake", system="Be brief.", messages=HI)
        assert engine.jobs == []
        message = await client.messages.create(**ASK, system="Be brief.")
    assert count.input_tokens == message.usage.input_tokens == 11


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"extra_body": {"temperature": 1.5}}, "temperature: "),
        ({"messages": []}, "messages: "),
        ({"max_tokens": 0}, "max_tokens: "),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages.0.content.0: "),
        ({"messages": [{"role": "user", "content": [{"type": "document", "source": {}}]}]}, "messages.0.content.0: "),
        ({"messages": [*HI, {"role": "assistant", "content": [USE]}]}, "messages: the last turn"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools: web_search_20250305"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools: bash_20250124"),
        ({"tool_choice": {"type": "any"}}, "tool_choice: "),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens: "),
        ({"output_config": {"effort": "huge"}}, "output_config.effort: "),
        ({"tools": [TIME, TIME]}, "tools: time is the name of two functions"),
        ({"extra_body": {"max_token": 1}}, "max_token: unknown field"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_bad_requests(change: dict[str, Any], text: str, stream: bool) -> None:
    """A wrong or unsupported field is the client's BadRequestError, whose message names it; streamed or not."""
    async with _client() as client:
        with pytest.raises(anthropic.BadRequestError) as caught:
            await client.messages.create(**ASK | {"stream": stream} | change)
    body: Any = caught.value.body
    assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
    assert body["error"]["message"].startswith(text)


async def test_conversation_that_does_not_fit() -> None:
    """A conversation too long for the model is a BadRequestError that says so."""
    async with _client(fake_context(FakeEngine(token_length=8, info=replace(INFO, context_length=8)))) as client:
        with pytest.raises(anthropic.BadRequestError, match="maximum context length is 8 tokens"):
            await client.messages.create(**ASK)


async def test_unknown_model() -> None:
    """A model that is not served is the client's NotFoundError, for messages and for counts."""
    async with _client() as client:
        with pytest.raises(anthropic.NotFoundError, match="not_found_error"):
            await client.messages.create(**ASK | {"model": "claude"})
        with pytest.raises(anthropic.NotFoundError):
            await client.messages.count_tokens(model="claude", messages=HI)


async def test_batches_are_not_found() -> None:
    """What the service does not offer is NotFoundError in the same shape."""
    async with _client() as client:
        with pytest.raises(anthropic.NotFoundError, match="not_found_error"):
            await client.messages.batches.retrieve("x")


@pytest.mark.parametrize(
    ("failure", "error", "kind"),
    [
        (TooManyRequests("full", retry_after=2), anthropic.RateLimitError, "rate_limit_error"),
        (ModelLoading("loading", retry_after=2), anthropic.InternalServerError, "overloaded_error"),
        (DeadlineExceeded("too slow"), anthropic.InternalServerError, "timeout_error"),
        (RuntimeError("/srv/secret"), anthropic.InternalServerError, "api_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_failures(failure: Exception, error: type[anthropic.APIStatusError], kind: str, stream: bool) -> None:
    """An error before the first token is the client's exception of its status, with the type that goes with it."""
    async with _client(fake_context(FakeEngine(fail_after=0, failure=failure))) as client:
        with pytest.raises(error) as caught:
            await client.messages.create(**ASK, stream=stream)
    body: Any = caught.value.body
    assert body["error"]["type"] == kind
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("failure", "kind"), [(Draining("shutting down"), "overloaded_error"), (RuntimeError("/srv/secret"), "api_error")]
)
async def test_stream_that_fails_midway(failure: Exception, kind: str) -> None:
    """An error midway is an event that the client raises."""
    async with _client(fake_context(FakeEngine(fail_after=2, failure=failure))) as client:
        stream = await client.messages.create(**ASK, stream=True)
        with pytest.raises(anthropic.APIStatusError, match=kind) as caught:
            async for _ in stream:
                pass
    assert "secret" not in str(caught.value)


async def test_leaving_the_stream() -> None:
    """A client that leaves stops the generation."""
    engine = FakeEngine(words=("x",) * 100_000, pause=0.001)
    async with _client(fake_context(engine)) as client:
        async with client.messages.stream(**ASK | {"max_tokens": 100_000}) as stream:
            async for _ in stream:
                break
        await until(lambda: engine.open_streams == 0)


@pytest.mark.parametrize("scope", ["chat", "messages", "count_tokens", "*", "generate"])
async def test_key(scope: str) -> None:
    """The client's X-Api-Key is the key; it needs the scope of a chat or of the operation."""
    key = new_key()
    record = KeyRecord(Caller("k_1", "c", frozenset({scope})), 1, None, digest(key)).line()
    async with _client(key=key, api_keys=record) as client:
        if scope in ("chat", "messages", "*"):
            assert (await client.messages.create(**ASK)).stop_reason == "end_turn"
        else:
            with pytest.raises(anthropic.PermissionDeniedError, match="permission_error"):
                await client.messages.create(**ASK)
        if scope in ("chat", "count_tokens", "*"):
            assert (await client.messages.count_tokens(model="fake", messages=HI)).input_tokens == 1
        with pytest.raises(anthropic.AuthenticationError, match="authentication_error"):
            await client.with_options(api_key=new_key()).messages.create(**ASK)
