"""The Responses API of OpenAI's own client against the service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from handlers.context import Context
from runtime.answer_format import AnswerFormat
from runtime.errors import Draining, ModelLoading, TooManyRequests
from runtime.types import TemplateOptions
from tests.support.fakes import INFO, FakeEngine, fake_context, serving, until

TIME: Any = {"type": "function", "name": "time", "parameters": {"type": "object"}, "strict": False}
CALL = ("I look.\n", "<tool_call>\n", '{"name": "time", "arguments": {"zone": ', '"UTC"}}\n', "</tool_call>")


class City(BaseModel):
    """A city, as a format of the answer."""

    name: str


@asynccontextmanager
async def _client(ctx: Context | None = None, **settings: Any) -> AsyncIterator[AsyncOpenAI]:
    async with (
        serving(ctx, **settings) as url,
        AsyncOpenAI(base_url=f"{url}/v1", api_key="none needed", max_retries=0, timeout=10) as client,
    ):
        yield client


async def test_create() -> None:
    """A plain response, with everything the client offers as attributes."""
    engine = FakeEngine(token_length=9, cached_tokens=8)
    async with _client(fake_context(engine)) as client:
        response = await client.responses.create(
            model="fake",
            input="Hi",
            instructions="Be brief.",
            max_output_tokens=50,
            temperature=0,
            top_p=0.5,
            metadata={"job": "1"},
            store=True,
            include=["reasoning.encrypted_content"],
            truncation="disabled",
            service_tier="auto",
            user="me",
            safety_identifier="me",
            prompt_cache_key="k",
            background=False,
            parallel_tool_calls=False,
            previous_response_id=None,
            extra_body={"seed": 7, "stop": ["x"]},
        )
    assert response.id == "resp_id1"
    assert response.object == "response"
    assert response.created_at == 1_700_000_000
    assert (response.model, response.status, response.output_text) == ("fake", "completed", "Hello there.")
    assert (response.error, response.incomplete_details, response.previous_response_id) == (None, None, None)
    assert (response.instructions, response.max_output_tokens) == ("Be brief.", 50)
    assert (response.temperature, response.top_p, response.metadata) == (0, 0.5, {"job": "1"})
    assert (response.parallel_tool_calls, response.tool_choice, response.tools) == (False, "auto", [])
    assert (response.user, response.safety_identifier, response.prompt_cache_key) == ("me", "me", "k")
    (item,) = response.output
    assert (item.type, item.status) == ("message", "completed")
    usage = response.usage
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (9, 3, 12)
    assert (usage.input_tokens_details.cached_tokens, usage.output_tokens_details.reasoning_tokens) == (8, 0)
    params = engine.jobs[0][0].params
    assert (params.max_new_tokens, params.seed, params.stop, params.temperature) == (50, 7, ("x",), 0)


def test_every_member_has_its_type() -> None:
    """The client's own model of a response accepts ours strictly, which the client itself does not check."""

    async def create() -> Any:
        async with _client() as client:
            return await client.responses.create(model="fake", input="Hi", top_logprobs=1)

    response = asyncio.run(create())
    type(response).model_validate(response.model_dump(by_alias=True))


def test_synchronous_client() -> None:
    """The synchronous client works, too, whole and streamed."""

    async def run() -> tuple[str, str]:
        async with serving() as url:

            def ask() -> tuple[str, str]:
                with OpenAI(base_url=f"{url}/v1", api_key="none needed", max_retries=0, timeout=10) as client:
                    whole = client.responses.create(model="fake", input="Hi").output_text
                    with client.responses.stream(model="fake", input="Hi") as stream:
                        return whole, stream.get_final_response().output_text

            return await asyncio.to_thread(ask)

    assert asyncio.run(run()) == ("Hello there.", "Hello there.")


async def test_answer_put_back() -> None:
    """The output of a response is part of the next request's input, as the client's objects or their dumps."""
    engine = FakeEngine()
    turns: list[Any] = [{"role": "user", "content": "Hi"}]
    async with _client(fake_context(engine)) as client:
        first = await client.responses.create(model="fake", input=turns)
        second = await client.responses.create(model="fake", input=[*turns, *first.output])  # type: ignore[list-item]
        dumped = [item.model_dump(exclude_none=True) for item in second.output]
        await client.responses.create(model="fake", input=[*turns, *dumped])
    assert [(message.role, message.content) for message in engine.chats[1]] == [
        ("user", "Hi"),
        ("assistant", "Hello there."),
    ]
    assert engine.chats[1] == engine.chats[2]


async def test_stream_of_events() -> None:
    """The raw stream yields the typed events, numbered, and ends by itself."""
    async with _client() as client:
        stream = await client.responses.create(model="fake", input="Hi", stream=True)
        events = [event async for event in stream]
    assert [event.sequence_number for event in events] == list(range(len(events)))  # type: ignore[union-attr]
    assert (events[0].type, events[1].type) == ("response.created", "response.in_progress")
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "Hello there."
    last = events[-1]
    assert last.type == "response.completed"
    assert last.response.output_text == "Hello there."
    assert last.response.usage is not None


async def test_stream_helper() -> None:
    """The client's accumulator follows the events to the final response."""
    async with _client() as client, client.responses.stream(model="fake", input="Hi") as stream:
        snapshots = [event.snapshot async for event in stream if event.type == "response.output_text.delta"]
        final = await stream.get_final_response()
    assert snapshots == ["Hello", "Hello there", "Hello there."]
    assert final.output_text == "Hello there."


async def test_incomplete() -> None:
    """A response that its limit cuts off is incomplete, whole and streamed."""
    async with _client() as client:
        response = await client.responses.create(model="fake", input="Hi", max_output_tokens=1)
        stream = await client.responses.create(model="fake", input="Hi", max_output_tokens=1, stream=True)
        *_, last = [event async for event in stream]
    assert (response.status, response.output_text) == ("incomplete", "Hello")
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert last.type == "response.incomplete"


async def test_logprobs() -> None:
    """Log-probabilities are where the client looks for them."""
    async with _client() as client:
        response = await client.responses.create(
            model="fake", input="Hi", include=["message.output_text.logprobs"], top_logprobs=2
        )
    (item,) = response.output
    assert item.type == "message"
    (part,) = item.content
    assert part.type == "output_text"
    assert [(entry.token, entry.logprob) for entry in part.logprobs or []][:2] == [("Hello", -0.25), (" there", -0.5)]
    assert [len(entry.top_logprobs) for entry in part.logprobs or []] == [2, 2, 2]
    assert response.top_logprobs == 2


async def test_parse() -> None:
    """A format given as a model is sent as its schema, and the text comes back as an object."""
    engine = FakeEngine(words=('{"name":', '"Rome"}'))
    async with _client(fake_context(engine)) as client:
        parsed = await client.responses.parse(model="fake", input="A city?", text_format=City)
        async with client.responses.stream(model="fake", input="A city?", text_format=City) as stream:
            streamed = await stream.get_final_response()
    assert parsed.output_parsed == City(name="Rome")
    assert streamed.output_parsed == City(name="Rome")
    grammar = engine.jobs[0][0].params.grammar
    assert grammar is not None
    assert grammar.kind == "json_schema"
    assert '"name"' in grammar.definition


async def test_agent_loop() -> None:
    """A call, its output in the next request, and the final answer, as agents do it with the client's objects."""
    engine = FakeEngine(CALL)
    items: list[Any] = [{"role": "user", "content": "When?"}]
    async with _client(fake_context(engine)) as client:
        for _ in range(2):
            response = await client.responses.create(model="fake", input=items, tools=[TIME])
            calls = [item for item in response.output if item.type == "function_call"]
            assert [(call.name, call.arguments) for call in calls] == [("time", '{"zone": "UTC"}')]
            items += response.output
            items += [{"type": "function_call_output", "call_id": call.call_id, "output": "noon"} for call in calls]
        engine.words = ("Noon.",)
        response = await client.responses.create(model="fake", input=items, tools=[TIME])
    assert response.output_text == "Noon."
    assert [turn.role for turn in engine.chats[-1]] == ["user", "assistant", "tool", "assistant", "tool"]
    made = [call.id for turn in engine.chats[-1] for call in turn.tool_calls]
    assert [turn.tool_call_id for turn in engine.chats[-1] if turn.role == "tool"] == made


async def test_streamed_call() -> None:
    """The client's accumulator puts the arguments of a call together."""
    async with (
        _client(fake_context(FakeEngine(CALL))) as client,
        client.responses.stream(model="fake", input="When?", tools=[TIME], tool_choice="auto") as stream,
    ):
        final = await stream.get_final_response()
    message, call = final.output
    assert (message.type, call.type) == ("message", "function_call")
    assert getattr(call, "arguments", "") == '{"zone": "UTC"}'


async def test_reasoning() -> None:
    """Reasoning is an item of its own, whole and streamed, and may be put back into the input."""
    engine = FakeEngine(("<think>", "Hm.", "</think>", "Hi."), answer_format=AnswerFormat(reasoning="optional"))
    async with _client(fake_context(engine)) as client:
        response = await client.responses.create(model="fake", input="Hi", reasoning={"effort": "low"})
        async with client.responses.stream(model="fake", input="Hi") as stream:
            streamed = await stream.get_final_response()
        again: list[Any] = [{"role": "user", "content": "Hi"}, *response.output, {"role": "user", "content": "And?"}]
        await client.responses.create(model="fake", input=again)
    reasoning = response.output[0]
    assert reasoning.type == "reasoning"
    assert [part.text for part in reasoning.content or []] == ["Hm."]
    assert response.output_text == streamed.output_text == "Hi."
    assert [item.type for item in streamed.output] == ["reasoning", "message"]
    assert engine.template_options[0] == TemplateOptions(arguments='{"reasoning_effort": "low"}')
    assert [turn.content for turn in engine.chats[-1]] == ["Hi", "Hi.", "And?"]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"input": []}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input.0.content.0"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}]}, "input.0.content.0"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tools": [{"type": "file_search", "vector_store_ids": ["x"]}]}, "tools"),
        ({"tools": [{"type": "code_interpreter", "container": {"type": "auto"}}]}, "tools"),
        ({"tools": [{"type": "mcp", "server_label": "x", "server_url": "x"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TIME, TIME]}, "tools"),
        ({"tools": [TIME | {"parameters": {"type": "array"}}]}, "tools.0.parameters"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"service_tier": "priority"}, "service_tier"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"extra_body": {"tempratur": 1}}, "tempratur"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_bad_requests(change: dict[str, Any], param: str, stream: bool) -> None:
    """A wrong or unsupported field is the client's BadRequestError, which names it; streamed or not."""
    async with _client() as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.responses.create(**{"model": "fake", "input": "Hi", "stream": stream} | change)
    assert (caught.value.param, caught.value.code, caught.value.type) == (
        param,
        "invalid_request",
        "invalid_request_error",
    )
    assert caught.value.request_id


async def test_input_that_does_not_fit() -> None:
    """An input too long for the model has the code that clients look for, and names the input."""
    async with _client(fake_context(FakeEngine(token_length=8, info=replace(INFO, context_length=8)))) as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.responses.create(model="fake", input="Hi")
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "input")


async def test_unknown_model() -> None:
    """A model that is not served is the client's NotFoundError."""
    async with _client() as client:
        with pytest.raises(openai.NotFoundError) as caught:
            await client.responses.create(model="gpt-5", input="Hi")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


async def test_responses_are_not_kept() -> None:
    """Retrieving, deleting and cancelling are NotFoundErrors, because nothing is kept."""
    async with _client() as client:
        for ask in (client.responses.retrieve, client.responses.delete, client.responses.cancel):
            with pytest.raises(openai.NotFoundError):
                await ask("resp_1")


@pytest.mark.parametrize(
    ("failure", "error", "code"),
    [
        (TooManyRequests("full", retry_after=2), openai.RateLimitError, "queue_full"),
        (ModelLoading("loading", retry_after=2), openai.InternalServerError, "model_loading"),
        (RuntimeError("/srv/secret"), openai.InternalServerError, "internal_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_failures(failure: Exception, error: type[openai.APIStatusError], code: str, stream: bool) -> None:
    """An error before the first token is the client's exception of its status, whole and streamed."""
    async with _client(fake_context(FakeEngine(fail_after=0, failure=failure))) as client:
        with pytest.raises(error) as caught:
            await client.responses.create(model="fake", input="Hi", stream=stream)
    assert caught.value.code == code
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("failure", "code", "kinds"),
    [
        (Draining("shutting down"), "draining", ["response.failed", "error"]),
        (RuntimeError("/srv/secret"), "internal_error", ["error"]),
    ],
)
async def test_stream_that_fails_midway(failure: Exception, code: str, kinds: list[str]) -> None:
    """An error midway is the last event, after the failed response; its number follows on."""
    async with _client(fake_context(FakeEngine(fail_after=2, failure=failure))) as client:
        stream = await client.responses.create(model="fake", input="Hi", stream=True)
        events = [event async for event in stream]
    assert [event.type for event in events][-len(kinds) :] == kinds
    last = events[-1]
    assert last.type == "error"
    assert (last.code, last.sequence_number) == (code, len(events) - 1)
    assert "secret" not in last.message


async def test_leaving_the_stream() -> None:
    """A client that leaves stops the generation."""
    engine = FakeEngine(words=("x",) * 100_000, pause=0.001)
    async with _client(fake_context(engine)) as client:
        stream = await client.responses.create(model="fake", input="Hi", stream=True)
        async for _ in stream:
            break
        await stream.close()
        await until(lambda: engine.open_streams == 0)
