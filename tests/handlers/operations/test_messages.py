"""handlers.operations.messages: Anthropic's Messages API."""

from __future__ import annotations

from typing import Any

import pytest

from handlers.generation.messages_input import chat_payload
from handlers.generation.messages_output import MessageBuilder
from handlers.operations import messages
from handlers.schemas.messages_api import MessagesRequest
from handlers.schemas.messages_api_objects import MessageEvent, MessageResponse, TokenCount
from handlers.schemas.parsing import parse
from runtime.answer_format import AnswerFormat
from runtime.errors import InvalidRequest, TooManyRequests
from runtime.types import Message
from tests.support.fakes import FakeEngine, fake_context, usage

HI: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 50}
TOOL: dict[str, Any] = {"name": "time", "input_schema": {"type": "object"}}
FORM: dict[str, Any] = {"type": "json_schema", "schema": {"type": "object"}}
CHAT: dict[str, Any] = {"id": "chatcmpl-1", "created": 5, "model": "m"}


async def _events(payload: dict[str, Any], engine: FakeEngine | None = None) -> list[dict[str, Any]]:
    return [event async for event in messages.stream(HI | payload, fake_context(engine))]


def _chat(**payload: Any) -> dict[str, Any]:
    """The chat completion that a request is translated into."""
    payload = HI | payload
    return chat_payload(parse(MessagesRequest, payload), payload)


def _build(chunks: list[dict[str, Any]], **payload: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The message and the events of a chat completion's choices."""
    builder = MessageBuilder(parse(MessagesRequest, HI | payload), CHAT)
    events = builder.start()
    for choice in chunks:
        events += builder.add(choice)
    events += builder.finish({"usage": usage(3, 4, 1)})
    for event in events:
        MessageEvent.model_validate(event, extra="forbid", strict=True)
    return builder.message, events


async def test_message() -> None:
    """The whole message; its input tokens are those that were not cached."""
    message = await messages.handle(HI, fake_context(FakeEngine(token_length=9, cached_tokens=8)))
    MessageResponse.model_validate(message, extra="forbid", strict=True)
    assert message == {
        "id": "msg_id1",
        "type": "message",
        "role": "assistant",
        "model": "fake",
        "content": [{"type": "text", "text": "Hello there."}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 1,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 8,
            "output_tokens": 3,
            "service_tier": "standard",
        },
    }


async def test_turns_reach_the_template() -> None:
    """System prompt and turns keep their order, and blocks are joined."""
    engine = FakeEngine()
    payload: dict[str, Any] = {
        "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Hm.", "signature": ""},
                    {"type": "text", "text": "c", "citations": None},
                ],
            },
            {"role": "user", "content": ""},
        ],
    }
    await messages.handle(HI | payload, fake_context(engine))
    assert engine.chats == [
        (
            Message("system", "Be brief."),
            Message("user", "ab"),
            Message("assistant", "c", reasoning="Hm."),
            Message("user", ""),
        )
    ]


def test_tools_and_their_results() -> None:
    """Uses of tools are the assistant's calls, each result is a message of the tool; an error says that it is one."""
    turns = [
        {"role": "user", "content": "When?"},
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "t1", "name": "time", "input": {"zone": "é"}},
                {"type": "tool_use", "id": "t2", "name": "time", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "noon"}]},
                {"type": "tool_result", "tool_use_id": "t2", "content": "no zone", "is_error": True},
                {"type": "text", "text": "And?"},
            ],
        },
    ]
    assert _chat(messages=turns)["messages"] == [
        {"role": "user", "content": "When?"},
        {
            "role": "assistant",
            "content": "I look.",
            "tool_calls": [
                {"id": "t1", "type": "function", "function": {"name": "time", "arguments": '{"zone": "é"}'}},
                {"id": "t2", "type": "function", "function": {"name": "time", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "t1", "content": "noon"},
        {"role": "tool", "tool_call_id": "t2", "content": "Error: no zone"},
        {"role": "user", "content": "And?"},
    ]


def test_fields_of_the_chat() -> None:
    """Sampling fields are passed on as they are, the others under their names in a chat completion."""
    fields: dict[str, Any] = {"temperature": 0.5, "top_k": 3, "seed": 7, "cache_control": "no-store"}
    chat = _chat(**fields, stop_sequences=["x"], output_config={"format": FORM})
    assert chat == _chat(**fields, stop_sequences=["x"], output_format=FORM)
    assert chat == {
        "max_tokens": 50,
        "temperature": 0.5,
        "top_k": 3,
        "seed": 7,
        "stop": ["x"],
        "cache_control": "no-store",
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True},
        },
        "messages": HI["messages"],
    }


@pytest.mark.parametrize(
    ("choice", "translated"),
    [
        ({"type": "auto"}, "auto"),
        ({"type": "any"}, "required"),
        ({"type": "none"}, "none"),
        ({"type": "tool", "name": "time"}, {"type": "function", "function": {"name": "time"}}),
    ],
)
def test_tool_choice(choice: dict[str, Any], translated: Any) -> None:
    """Tools and the choice among them take the chat's form."""
    chat = _chat(tools=[TOOL | {"type": "custom", "description": "The time."}], tool_choice=choice)
    function = {"name": "time", "description": "The time.", "parameters": {"type": "object"}}
    assert chat["tools"] == [{"type": "function", "function": function}]
    assert (chat["tool_choice"], chat["parallel_tool_calls"]) == (translated, True)
    one = _chat(tools=[TOOL], tool_choice=choice | {"disable_parallel_tool_use": True})
    assert one["parallel_tool_calls"] is False


@pytest.mark.parametrize(
    ("given", "translated"),
    [
        ({"thinking": {"type": "disabled"}}, {"reasoning_effort": "none"}),
        ({"thinking": {"type": "adaptive"}}, {}),
        ({"thinking": {"type": "enabled", "budget_tokens": 9}}, {"thinking_token_budget": 9}),
        ({"output_config": {"effort": "low"}}, {"reasoning_effort": "low"}),
    ],
)
def test_reasoning(given: dict[str, Any], translated: dict[str, Any]) -> None:
    """Reasoning is turned off, left to the model, or limited."""
    assert _chat(**given) == {"max_tokens": 50, "messages": HI["messages"]} | translated


async def test_reasoning_that_cannot_be_turned_off() -> None:
    """The error names the field that the client knows."""
    ctx = fake_context(FakeEngine(answer_format=AnswerFormat(reasoning="open")))
    with pytest.raises(InvalidRequest, match=r"^thinking\.type: the reasoning of this model cannot be turned off"):
        await messages.handle(HI | {"thinking": {"type": "disabled"}}, ctx)


async def test_call_of_a_model() -> None:
    """A model's call is a block after its text, whole and streamed."""
    call = ("I look.\n", "<tool_call>\n", '{"name": "time", "arguments": {"zone": ', '"UTC"}}\n', "</tool_call>")
    message = await messages.handle(HI | {"tools": [TOOL]}, fake_context(FakeEngine(call)))
    text, use = message["content"]
    assert (text["text"], use["name"], use["input"], message["stop_reason"]) == (
        *("I look.", "time", {"zone": "UTC"}, "tool_use"),
    )
    events = await _events({"tools": [TOOL]}, FakeEngine(call))
    pieces = [event["delta"]["partial_json"] for event in events if "partial_json" in event.get("delta", {})]
    assert "".join(pieces) == '{"zone": "UTC"}'


async def test_accepted_fields_change_nothing() -> None:
    """Fields that are accepted for compatibility, and values that ask for nothing, are as if left out."""
    engine = FakeEngine()
    nothing = {
        **dict.fromkeys(("system", "tools", "stop_sequences", "thinking", "container", "output_config")),
        **{"metadata": {"user_id": "me"}, "service_tier": "auto", "cache_control": {"type": "ephemeral", "ttl": "1h"}},
        **{"mcp_servers": [], "speed": "standard"},
    }
    await messages.handle(HI, fake_context(engine))
    await messages.handle(HI | nothing, fake_context(engine))
    assert engine.jobs[0] == engine.jobs[1]


async def test_begun_answers_are_continued() -> None:
    """The prompt ends with the assistant's last turn, whole and streamed, and also when its tokens are counted."""
    engine = FakeEngine()
    begun = HI | {"messages": [*HI["messages"], {"role": "assistant", "content": "I am"}]}
    await messages.handle(begun, fake_context(engine))
    assert [event async for event in messages.stream(begun, fake_context(engine))]
    await messages.count({"messages": begun["messages"]}, fake_context(engine))
    await messages.handle(HI, fake_context(engine))
    assert [options.continue_final_message for options in engine.template_options] == [True, True, True, False]
    assert engine.chats[0][-1] == Message("assistant", "I am")


async def test_stream() -> None:
    """The events in their order; the usage at the end is that of a message without a stream."""
    events = await _events({}, FakeEngine(token_length=9))
    assert [event["type"] for event in events] == [
        *("message_start", "ping", "content_block_start"),
        *["content_block_delta"] * 3,
        *("content_block_stop", "message_delta", "message_stop"),
    ]
    assert events[0]["message"]["content"] == []
    assert (events[0]["message"]["usage"]["input_tokens"], events[0]["message"]["usage"]["output_tokens"]) == (9, 0)
    assert [event["delta"]["text"] for event in events[3:6]] == ["Hello", " there", "."]
    assert events[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert (events[-2]["usage"]["input_tokens"], events[-2]["usage"]["output_tokens"]) == (9, 3)


@pytest.mark.parametrize(
    ("choice", "reason", "sequence"),
    [
        ({"finish_reason": "stop"}, "end_turn", None),
        ({"finish_reason": "stop", "stop_reason": "x"}, "stop_sequence", "x"),
        ({"finish_reason": "stop", "stop_reason": 2}, "end_turn", None),
        ({"finish_reason": "tool_calls"}, "tool_use", None),
    ],
)
def test_stop_reason(choice: dict[str, Any], reason: str, sequence: str | None) -> None:
    """Why the text ended, and the stop sequence that ended it."""
    message, _ = _build([{"delta": {"content": "a"}}, {"delta": {}} | choice], stop_sequences=["x"])
    assert (message["stop_reason"], message["stop_sequence"]) == (reason, sequence)


@pytest.mark.parametrize(("limit", "reason"), [(4, "max_tokens"), (5, "model_context_window_exceeded")])
def test_cut_off(limit: int, reason: str) -> None:
    """max_tokens cuts a text off after that many tokens, the model's context before."""
    message, _ = _build([{"delta": {"content": "a"}, "finish_reason": "length"}], max_tokens=limit)
    assert message["stop_reason"] == reason


async def test_nothing_generated() -> None:
    """A message without a token still has its text."""
    events = await _events({}, FakeEngine(words=()))
    assert [event["content_block"] for event in events if "content_block" in event] == [{"type": "text", "text": ""}]


THINKING_AND_TOOLS: list[dict[str, Any]] = [
    {"delta": {"role": "assistant", "reasoning_content": "Hm"}},
    {"delta": {"reasoning_content": "m."}},
    {"delta": {"content": "I look."}},
    {"delta": {"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "f", "arguments": ""}}]}},
    {"delta": {"tool_calls": [{"index": 0, "function": {"arguments": '{"a":'}}]}},
    {"delta": {"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]}},
    {"delta": {"tool_calls": [{"index": 1, "id": "c2", "function": {"name": "g", "arguments": "{}"}}]}},
    {"delta": {}, "finish_reason": "tool_calls"},
]


def test_thinking_and_tools() -> None:
    """Reasoning, text and uses of tools are blocks of their own, each with its events."""
    message, events = _build(THINKING_AND_TOOLS)
    assert message["content"] == [
        {"type": "thinking", "thinking": "Hmm.", "signature": ""},
        {"type": "text", "text": "I look."},
        {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}},
        {"type": "tool_use", "id": "c2", "name": "g", "input": {}},
    ]
    assert message["stop_reason"] == "tool_use"
    of_thinking = [event for event in events if event.get("index") == 0]
    assert [event["delta"]["type"] for event in of_thinking[1:-1]] == [*["thinking_delta"] * 2, "signature_delta"]
    of_call = [event for event in events if event.get("index") == 2]
    assert [event["type"] for event in of_call] == [
        "content_block_start",
        *["content_block_delta"] * 2,
        "content_block_stop",
    ]
    assert of_call[0]["content_block"]["input"] == {}
    assert [event["delta"]["partial_json"] for event in of_call[1:3]] == ['{"a":', "1}"]


def test_whole_answer_and_chunks_agree() -> None:
    """A chat completion's message and its chunks give the same message."""
    calls = [
        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
        {"id": "c2", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]
    answer = {"role": "assistant", "reasoning_content": "Hmm.", "content": "I look.", "tool_calls": calls}
    whole, _ = _build([{"index": 0, "message": answer, "finish_reason": "tool_calls", "logprobs": None}])
    assert whole == _build(THINKING_AND_TOOLS)[0]


def test_input_that_was_cut_off() -> None:
    """The input of a call that the limit cut off is empty, because it is no JSON."""
    message, _ = _build([*THINKING_AND_TOOLS[3:5], {"delta": {}, "finish_reason": "length"}], max_tokens=4)
    assert (message["content"][0]["input"], message["stop_reason"]) == ({}, "max_tokens")


async def test_failure_midway() -> None:
    """An error after the first token is raised from the stream."""
    engine = FakeEngine(fail_after=1, failure=TooManyRequests("full"))
    with pytest.raises(TooManyRequests):
        await _events({}, engine)
    assert engine.open_streams == 0


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        ({"max_tokens": None}, "max_tokens", "integer"),
        ({"max_tokens": 0}, "max_tokens", "greater than"),
        ({"temperature": 1.5}, "temperature", "less than or equal to 1"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages.0.content.0", "no images"),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {}}]}]},
            "messages.0.content",
            "tool_use",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text", "required"),
        (
            {
                "messages": [
                    {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {}}]}
                ]
            },
            "messages",
            "last turn",
        ),
        ({"output_format": FORM, "output_config": {"format": FORM}}, "output_format", "not both"),
        ({"output_config": {"task_budget": {"type": "tokens", "total": 5}}}, "output_config.task_budget", "not supp"),
        ({"thinking": {"type": "adaptive", "display": "omitted"}}, "thinking.display", "not summarize"),
        ({"fallbacks": [{"model": "x"}]}, "fallbacks", "not supported"),
        ({"system": [{"type": "image"}]}, "system.0", "no images"),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "tool_result", "tool_use_id": "1", "content": [{"type": "image"}]}],
                    }
                ]
            },
            "messages.0.content.0.content.0",
            "no images",
        ),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools", "hosted tool"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "f"}}, "tool_choice", "no function f"),
        ({"tool_choice": {"type": "any"}}, "tool_choice", "needs tools"),
        ({"tool_choice": {"type": "auto", "name": "f"}}, "tool_choice.name", "type tool"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens", "type enabled"),
        ({"thinking": {"type": "disabled", "budget_tokens": 5}}, "thinking.budget_tokens", "type enabled"),
        ({"output_config": {"effort": "huge"}}, "output_config.effort", "should be"),
        ({"stop_sequences": [""]}, "stop_sequences.0", "at least 1 character"),
        ({"container": "c"}, "container", "not supported"),
        ({"messages": [{"role": "user", "content": "x" * 200_001}]}, "messages", r"^messages: 200001 characters"),
    ],
)
async def test_refused(change: dict[str, Any], param: str, message: str) -> None:
    """A wrong or unsupported field is refused under the name that the client knows, whole and streamed."""
    with pytest.raises(InvalidRequest, match=message) as caught:
        await messages.handle(HI | change, fake_context())
    assert caught.value.param == param
    with pytest.raises(InvalidRequest):
        await anext(messages.stream(HI | change, fake_context()))


async def test_count() -> None:
    """The tokens of the conversation as the template renders it; nothing is generated."""
    engine = FakeEngine(token_length=len)
    count = await messages.count({"system": "abc", "messages": HI["messages"]}, fake_context(engine))
    TokenCount.model_validate(count, extra="forbid", strict=True)
    assert count == {"input_tokens": 5}
    assert engine.jobs == []


async def test_count_refuses() -> None:
    """Fields of a generation are not those of a count."""
    with pytest.raises(InvalidRequest, match=r"^max_tokens: unknown field$"):
        await messages.count(HI, fake_context())
