"""handlers.operations.create_response: OpenAI's Responses API."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

import pytest

from handlers.context import Context
from handlers.generation.responses_input import chat_payload
from handlers.generation.responses_output import ResponseBuilder
from handlers.operations import create_response, stored_responses
from handlers.schemas.parsing import parse
from handlers.schemas.responses_api import ResponsesRequest
from handlers.schemas.responses_api_objects import Response, ResponseEvent
from runtime.errors import InvalidRequest, NotFound, TooManyRequests
from runtime.response_cache.memory import MemoryStore
from runtime.types import Message
from tests.support.fakes import FakeEngine, fake_context, usage

# What the fake model says to call a function.
CALL = ("I look.\n", "<tool_call>\n", '{"name": "time", "arguments": {"zone": ', '"UTC"}}\n', "</tool_call>")
WEATHER: dict[str, Any] = {"type": "function", "name": "weather", "parameters": {"type": "object"}}
TIME: dict[str, Any] = {"type": "function", "name": "time", "description": "The time.", "strict": True}
CHAT: dict[str, Any] = {"id": "chatcmpl-1", "created": 5, "model": "m"}


async def _events(payload: dict[str, Any], engine: FakeEngine | None = None) -> list[dict[str, Any]]:
    return [event async for event in create_response.stream({"input": "Hi"} | payload, fake_context(engine))]


async def _read(stream: AsyncGenerator[dict[str, Any], None], events: list[dict[str, Any]]) -> None:
    async for event in stream:
        events.append(event)  # noqa: PERF401 - they are there when the stream fails, too


def _chat(**payload: Any) -> dict[str, Any]:
    """The chat completion that a request is translated into."""
    payload = {"input": "Hi"} | payload
    return chat_payload(parse(ResponsesRequest, payload), payload)


def _build(chunks: list[dict[str, Any]], **payload: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The response and the events of a chat completion's choices."""
    builder = ResponseBuilder(parse(ResponsesRequest, {"input": "Hi"} | payload), CHAT, lambda: 9.5)
    events = builder.start()
    for choice in chunks:
        events += builder.add(choice)
    events += builder.finish({"usage": usage(3, 4, 1)})
    for event in events:
        ResponseEvent.model_validate(event, extra="forbid", strict=True)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return builder.response, events


async def test_response() -> None:
    """The whole response, with the request's fields as they apply."""
    payload = {
        "input": "Hi",
        "instructions": "Be brief.",
        "metadata": {"a": "b"},
        "max_output_tokens": 9,
        "temperature": 0.5,
        "user": "me",
        "store": True,
    }
    response = await create_response.handle(payload, fake_context(FakeEngine(token_length=9, cached_tokens=8)))
    Response.model_validate(response, extra="forbid", strict=True)
    assert response["id"] == "resp_id1"
    assert (response["created_at"], response["completed_at"]) == (1_700_000_000, 1_700_000_000)
    assert (response["status"], response["error"], response["incomplete_details"]) == ("completed", None, None)
    assert response["output"] == [
        {
            "id": "msg_id1_0",
            "type": "message",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "Hello there.", "annotations": [], "logprobs": []}],
        }
    ]
    assert response["usage"] == {
        "input_tokens": 9,
        "input_tokens_details": {"cached_tokens": 8, "cache_write_tokens": 0},
        "output_tokens": 3,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 12,
    }
    echoed = {name: response[name] for name in payload if name not in ("input", "store")}
    assert echoed == {name: payload[name] for name in echoed}
    assert (response["store"], response["previous_response_id"], response["tool_choice"]) == (False, None, "auto")


async def test_items_reach_the_template() -> None:
    """Messages in both forms keep their order; instructions come first, and reasoning is left out."""
    engine = FakeEngine()
    items = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"},
        {
            "type": "message",
            "id": "msg_1",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "c", "annotations": [], "logprobs": []}],
        },
        {"role": "user", "content": ""},
    ]
    await create_response.handle({"instructions": "Be brief.", "input": items}, fake_context(engine))
    assert engine.chats == [
        (
            Message("system", "Be brief."),
            Message("system", "Be kind."),
            Message("user", "ab"),
            Message("assistant", "c"),
            Message("user", ""),
        )
    ]


def test_calls_and_their_results() -> None:
    """Calls belong to the assistant's message before them; a result is a message of the tool."""
    call = {"type": "function_call", "call_id": "c1", "name": "time", "arguments": "{}"}
    items = [
        {"role": "user", "content": "When?"},
        {"role": "assistant", "content": "I look."},
        call,
        call | {"call_id": "c2", "id": "fc_2", "status": "completed"},
        {"type": "function_call_output", "call_id": "c1", "output": "noon"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "one"}]},
        call | {"call_id": "c3"},
    ]
    function = {"name": "time", "arguments": "{}"}
    calls = [{"id": f"c{number}", "type": "function", "function": function} for number in (1, 2, 3)]
    assert _chat(input=items)["messages"] == [
        {"role": "user", "content": "When?"},
        {"role": "assistant", "content": "I look.", "tool_calls": calls[:2]},
        {"role": "tool", "tool_call_id": "c1", "content": "noon"},
        {"role": "tool", "tool_call_id": "c2", "content": "one"},
        {"role": "assistant", "content": None, "tool_calls": calls[2:]},
    ]


def test_fields_of_the_chat() -> None:
    """Sampling fields are passed on as they are, the others under their names in a chat completion."""
    chat = _chat(
        model="m", temperature=0.5, logit_bias={"5": 1}, max_output_tokens=7, stream=True, reasoning={"effort": "low"}
    )
    assert chat == {
        "model": "m",
        "temperature": 0.5,
        "logit_bias": {"5": 1},
        "max_completion_tokens": 7,
        "reasoning_effort": "low",
        "messages": [{"role": "user", "content": "Hi"}],
    }


@pytest.mark.parametrize(
    ("given", "form"),
    [
        ({"type": "text"}, {"type": "text"}),
        ({"type": "json_object"}, {"type": "json_object"}),
        (
            {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True},
            {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True}},
        ),
    ],
)
def test_text_format(given: dict[str, Any], form: dict[str, Any]) -> None:
    """The format of the text is the chat's response_format, and is returned as it was given."""
    assert _chat(text={"format": given})["response_format"] == form
    response, _ = _build([], text={"format": given})
    assert response["text"] == {"format": given}


@pytest.mark.parametrize(
    ("choice", "translated"),
    [
        ("required", "required"),
        ({"type": "function", "name": "time"}, {"type": "function", "function": {"name": "time"}}),
        (
            {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "time"}]},
            {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "time"}}]},
            },
        ),
    ],
)
def test_tools(choice: Any, translated: Any) -> None:
    """Functions and the choice among them take the chat's form."""
    chat = _chat(tools=[WEATHER, TIME], tool_choice=choice, parallel_tool_calls=False)
    assert [tool["function"]["name"] for tool in chat["tools"]] == ["weather", "time"]
    assert chat["tools"][-1] == {
        "type": "function",
        "function": {"name": "time", "description": "The time.", "parameters": {}, "strict": True},
    }
    assert (chat["tool_choice"], chat["parallel_tool_calls"]) == (translated, False)
    response, _ = _build([], tools=[WEATHER, TIME], tool_choice=choice)
    assert response["tool_choice"] == choice
    assert [tool["name"] for tool in response["tools"]] == ["weather", "time"]


@pytest.mark.parametrize("asked", [{"top_logprobs": 2}, {"include": ["message.output_text.logprobs"]}])
async def test_logprobs(asked: dict[str, Any]) -> None:
    """Log-probabilities come with the text, whole and streamed, if either field asks for them."""
    whole = await create_response.handle({"input": "Hi"} | asked, fake_context())
    logprobs = whole["output"][0]["content"][0]["logprobs"]
    assert [entry["token"] for entry in logprobs] == ["Hello", " there", "."]
    assert {len(entry["top_logprobs"]) for entry in logprobs} == {asked.get("top_logprobs", 0)}
    events = await _events(asked)
    deltas = [event["logprobs"] for event in events if event["type"] == "response.output_text.delta"]
    assert list(itertools.chain(*deltas)) == logprobs


async def test_stream() -> None:
    """The typed events in their order, numbered; the last has what a request without a stream returns."""
    events = await _events({})
    assert [event["type"].removeprefix("response.") for event in events] == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *["output_text.delta"] * 3,
        *("output_text.done", "content_part.done", "output_item.done", "completed"),
    ]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["delta"] for event in events if "delta" in event] == ["Hello", " there", "."]
    assert events[0]["response"]["status"] == "in_progress"
    assert events[-1]["response"] == await create_response.handle({"input": "Hi"}, fake_context())


async def test_cut_off() -> None:
    """A text that max_output_tokens ends makes the response incomplete, and says why."""
    response = await create_response.handle({"input": "Hi", "max_output_tokens": 1}, fake_context())
    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert (response["output"][0]["status"], response["completed_at"]) == ("incomplete", None)
    events = await _events({"max_output_tokens": 1})
    assert events[-1] == {"type": "response.incomplete", "sequence_number": len(events) - 1, "response": response}


async def test_nothing_generated() -> None:
    """A response without a token still has its message."""
    events = await _events({}, FakeEngine(words=()))
    (item,) = events[-1]["response"]["output"]
    assert item["content"][0]["text"] == ""


REASONING_AND_CALLS: list[dict[str, Any]] = [
    {"delta": {"role": "assistant", "reasoning_content": "Hm"}},
    {"delta": {"reasoning_content": "m."}},
    {"delta": {"content": "I look."}},
    {
        "delta": {
            "tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}]
        }
    },
    {"delta": {"tool_calls": [{"index": 0, "function": {"arguments": '{"a":'}}]}},
    {"delta": {"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]}},
    {"delta": {"tool_calls": [{"index": 1, "id": "c2", "function": {"name": "g", "arguments": "{}"}}]}},
    {"delta": {}, "finish_reason": "tool_calls"},
]


def test_reasoning_and_calls() -> None:
    """Reasoning, message and calls are items of their own, each with its events."""
    response, events = _build(REASONING_AND_CALLS)
    assert response["status"] == "completed"
    reasoning, message, first, second = response["output"]
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "Hmm."}]
    assert message["content"][0]["text"] == "I look."
    assert (first["call_id"], first["name"], first["arguments"]) == ("c1", "f", '{"a":1}')
    assert (second["call_id"], second["name"], second["arguments"]) == ("c2", "g", "{}")
    assert len({item["id"] for item in response["output"]}) == 4
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == response["output"]
    kinds = [event["type"].removeprefix("response.") for event in events if event.get("output_index") == 2]
    assert kinds == [
        "output_item.added",
        *["function_call_arguments.delta"] * 2,
        "function_call_arguments.done",
        "output_item.done",
    ]


def test_whole_answer_and_chunks_agree() -> None:
    """A chat completion's message and its chunks give the same response."""
    calls = [
        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
        {"id": "c2", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]
    message = {"role": "assistant", "reasoning_content": "Hmm.", "content": "I look.", "tool_calls": calls}
    whole, _ = _build([{"index": 0, "message": message, "finish_reason": "tool_calls", "logprobs": None}])
    assert whole == _build(REASONING_AND_CALLS)[0]


async def test_call_of_a_model() -> None:
    """A model's call is an item after its text, whole and streamed; the identifiers of calls differ."""
    payload = {"input": "When?", "tools": [TIME]}
    response = await create_response.handle(payload, fake_context(FakeEngine(CALL)))
    message, call = response["output"]
    assert message["content"][0]["text"] == "I look."
    assert (call["type"], call["name"], call["arguments"]) == ("function_call", "time", '{"zone": "UTC"}')
    events = await _events(payload, FakeEngine(CALL))
    ids = {"id": "", "call_id": ""}
    assert [item | ids for item in events[-1]["response"]["output"]] == [item | ids for item in (message, call)]
    assert Response.model_validate(response, extra="forbid", strict=True).tools == [
        {"type": "function", "name": "time", "description": "The time.", "parameters": {}, "strict": True}
    ]


def test_calls_without_a_text() -> None:
    """A message is there only if the model wrote one."""
    response, _ = _build(REASONING_AND_CALLS[3:])
    assert [item["type"] for item in response["output"]] == ["function_call", "function_call"]


async def test_failure_midway() -> None:
    """An error after the first token is told by response.failed, and raised."""
    engine = FakeEngine(fail_after=1, failure=TooManyRequests("full"))
    events: list[dict[str, Any]] = []
    stream = create_response.stream({"input": "Hi"}, fake_context(engine))
    with pytest.raises(TooManyRequests):
        await _read(stream, events)
    assert events[-1]["type"] == "response.failed"
    assert events[-1]["response"]["error"] == {"code": "rate_limit_exceeded", "message": "full"}
    assert events[-1]["response"]["status"] == "failed"


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        ({"input": []}, "input", "at least 1 item"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input", "not reasoning"),
        ({"input": 5}, "input", "a text or a list"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content.0", "no images"),
        ({"input": [{"role": "user", "content": "x", "nmae": 1}]}, "input.0.nmae", "unknown field"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0", "no items to refer to"),
        ({"input": [{"type": "function_call", "call_id": "x", "name": "f"}]}, "input.0.arguments", "required"),
        ({"conversation": "conv_1"}, "conversation", "not kept"),
        ({"background": True}, "background", "not supported"),
        ({"truncation": "auto"}, "truncation", "does not shorten"),
        ({"tools": [{"type": "web_search"}]}, "tools", "web_search is a hosted tool"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "f"}}, "tool_choice", "no function f"),
        ({"tool_choice": "required"}, "tool_choice", "needs tools"),
        ({"include": ["everything"]}, "include.0", "should be"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format", "type should be"),
        ({"text": {"verbosity": "high"}}, "text.verbosity", "not supported"),
        ({"reasoning": {"summary": "detailed"}}, "reasoning.summary", "summarize"),
        ({"max_output_tokens": 0}, "max_output_tokens", "greater than"),
        ({"input": "x" * 200_001}, "input", r"^input: 200001 characters"),
        ({"<x>": 1}, "<x>", "unknown field"),
    ],
)
async def test_refused(change: dict[str, Any], param: str, message: str) -> None:
    """A wrong or unsupported field is refused under the name that the client knows, whole and streamed."""
    with pytest.raises(InvalidRequest, match=message) as caught:
        await create_response.handle({"input": "Hi"} | change, fake_context())
    assert caught.value.param == param
    with pytest.raises(InvalidRequest):
        await anext(create_response.stream({"input": "Hi"} | change, fake_context()))


async def test_closing_the_stream() -> None:
    """A reader that leaves stops the generation."""
    engine = FakeEngine()
    stream = create_response.stream({"input": "Hi"}, fake_context(engine))
    await anext(stream)
    await stream.aclose()
    assert engine.open_streams == 0


async def test_parts_among_the_items() -> None:
    """Parts of a message that stand among the items are a message of the user."""
    engine = FakeEngine(token_length=9)
    parts = [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]
    payload = {"input": [*parts, {"role": "assistant", "content": "c"}, parts[0]]}
    await create_response.handle(payload, fake_context(engine))
    assert engine.chats == [(Message("user", "ab"), Message("assistant", "c"), Message("user", "a"))]
    with pytest.raises(InvalidRequest, match="no images"):
        await create_response.handle({"input": [parts[0], {"type": "input_image"}]}, fake_context(engine))


async def test_counted_tokens() -> None:
    """The number of tokens of the input, instructions and tools included, without generating."""
    engine = FakeEngine(token_length=9)
    count = await create_response.count({"input": "Hi", "instructions": "Be brief."}, fake_context(engine))
    assert count == {"object": "response.input_tokens", "input_tokens": 9}
    assert engine.chats == [(Message("system", "Be brief."), Message("user", "Hi"))]
    with pytest.raises(InvalidRequest, match=r"^input: 200001 characters"):
        await create_response.count({"input": "x" * 200_001}, fake_context(engine))


def _keeping(engine: FakeEngine | None = None, caller: str = "") -> Context:
    """A context that keeps responses."""
    return replace(fake_context(engine), responses=MemoryStore(1 << 20, 60, lambda: 0.0), caller=lambda: caller)


async def _create(payload: dict[str, Any], ctx: Context, *, streamed: bool) -> dict[str, Any]:
    if not streamed:
        return await create_response.handle(payload, ctx)
    return [event async for event in create_response.stream(payload, ctx)][-1]["response"]


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_kept_response(streamed: bool) -> None:
    """It can be read by its id, whole or streamed, until it is deleted."""
    ctx = _keeping()
    response = await _create({"input": "Hi"}, ctx, streamed=streamed)
    assert response["store"] is True
    which = {"response_id": response["id"]}
    assert await stored_responses.get(which, ctx) == response
    assert await stored_responses.delete(which, ctx) == {"id": response["id"], "object": "response", "deleted": True}
    for call in (stored_responses.get, stored_responses.delete):
        with pytest.raises(NotFound) as caught:
            await call(which, ctx)
        assert (caught.value.status, caught.value.param) == (404, "response_id")


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_conversation_by_its_last_response(streamed: bool) -> None:
    """The input continues all earlier inputs and outputs, calls and results among them, but no earlier instructions."""
    engine = FakeEngine(CALL)
    ctx = _keeping(engine)
    first = await _create({"input": "Hi", "instructions": "No.", "tools": [TIME]}, ctx, streamed=streamed)
    call = first["output"][-1]
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "noon"}
    engine.words = ("It is noon.",)
    again = {"previous_response_id": first["id"], "input": [result], "instructions": "Yes."}
    second = await _create(again, ctx, streamed=streamed)
    assert second["previous_response_id"] == first["id"]
    await _create({"previous_response_id": second["id"], "input": "Thanks."}, ctx, streamed=streamed)
    assert [(message.role, message.content) for message in engine.chats[1]] == [
        ("system", "Yes."),
        ("user", "Hi"),
        ("assistant", "I look."),
        ("tool", "noon"),
    ]
    assert [call.name for call in engine.chats[1][2].tool_calls] == ["time"]
    assert [message.content for message in engine.chats[2]] == ["Hi", "I look.", "noon", "It is noon.", "Thanks."]


@pytest.mark.parametrize(
    ("payload", "ctx"),
    [
        pytest.param({"store": False}, _keeping(), id="not asked to"),
        pytest.param({}, fake_context(), id="no store"),
    ],
)
async def test_a_response_that_is_not_kept(payload: dict[str, Any], ctx: Context) -> None:
    """It says so, and cannot be continued."""
    response = await create_response.handle({"input": "Hi"} | payload, ctx)
    assert response["store"] is False
    with pytest.raises(NotFound, match=r"previous_response_id: there is no such response; .* RESPONSES_STORE_BYTES"):
        await create_response.handle({"input": "Hi", "previous_response_id": response["id"]}, ctx)


async def test_a_caller_has_only_its_own_responses() -> None:
    """Another caller's response is as good as none."""
    mine = _keeping(caller="me")
    response = await create_response.handle({"input": "Hi"}, mine)
    with pytest.raises(NotFound):
        await stored_responses.get({"response_id": response["id"]}, replace(mine, caller=lambda: "you"))


async def test_a_response_that_fails_is_not_kept() -> None:
    """Only finished ones are."""
    ctx = _keeping(FakeEngine(fail_after=1, failure=TooManyRequests("full")))
    events: list[dict[str, Any]] = []
    with pytest.raises(TooManyRequests):
        await _read(create_response.stream({"input": "Hi"}, ctx), events)
    with pytest.raises(NotFound):
        await stored_responses.get({"response_id": events[0]["response"]["id"]}, ctx)
