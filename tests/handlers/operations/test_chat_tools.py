"""handlers.operations.chat with tools and reasoning: OpenAI's shapes, whole and streamed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from handlers.operations import chat
from handlers.schemas.responses import ChatChunk, ChatResponse
from runtime.answer_format import AnswerFormat
from runtime.errors import InvalidRequest
from runtime.types import Message, TemplateOptions, Tool, ToolCall
from tests.support.fakes import FakeEngine, caching, fake_context

TOOL = {"type": "function", "function": {"name": "get", "description": "It gets.", "parameters": {"type": "object"}}}
ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "tools": [TOOL]}
CALL = ("Well.\n", "<tool", '_call>\n{"name": "get", "arguments": {"x": ', "1}}\n</tool_", "call>")
CALLS = [{"id": "call_id2", "type": "function", "function": {"name": "get", "arguments": '{"x": 1}'}}]


async def test_answer() -> None:
    """The message has the calls and the text before them; the finish reason is tool_calls."""
    answer = await chat.handle(ASK, fake_context(FakeEngine(CALL)))
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": "Well.", "tool_calls": CALLS}
    assert choice["finish_reason"] == "tool_calls"
    ChatResponse.model_validate(answer, extra="forbid", strict=True)


async def test_answer_without_text() -> None:
    """Without text before the calls the content is null."""
    answer = await chat.handle(ASK | {"tool_choice": "required"}, fake_context(FakeEngine(CALL[1:])))
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": None, "tool_calls": CALLS}


async def test_stream() -> None:
    """A role chunk without content, text, the call's head, pieces of its arguments, the finish reason."""
    chunks = [chunk async for chunk in chat.stream(ASK, fake_context(FakeEngine(CALL)))]
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": None},
        {"content": "Well."},
        {
            "tool_calls": [
                {"index": 0, "id": "call_id2", "type": "function", "function": {"name": "get", "arguments": ""}}
            ]
        },
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"x": '}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]},
        {},
    ]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    for chunk in chunks:
        ChatChunk.model_validate(chunk, extra="forbid", strict=True)


async def test_text_instead_of_a_call() -> None:
    """With tools, an answer without calls is as without them."""
    answer = await chat.handle(ASK, fake_context())
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "Hello there."}
    assert answer["choices"][0]["finish_reason"] == "stop"


async def test_cut_off_call() -> None:
    """A call that is cut off by max_tokens has the finish reason length."""
    answer = await chat.handle(ASK | {"max_tokens": 3}, fake_context(FakeEngine(CALL)))
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"x": '


async def test_what_the_engine_gets() -> None:
    """The template gets tools, calls and results; the answer has a grammar."""
    history = [
        *ASK["messages"],
        {"role": "assistant", "content": None, "tool_calls": CALLS},
        {"role": "tool", "content": "2", "tool_call_id": "call_id2"},
    ]
    engine = FakeEngine()
    await chat.handle(ASK | {"messages": history, "reasoning_effort": "low"}, fake_context(engine))
    assert engine.tools == [(Tool("get", "It gets.", {"type": "object"}),)]
    assert engine.template_options == [TemplateOptions(arguments='{"reasoning_effort": "low"}')]
    assert engine.chats[0][1:] == (
        Message("assistant", "", (ToolCall("call_id2", "get", '{"x": 1}'),)),
        Message("tool", "2", tool_call_id="call_id2"),
    )
    grammar = engine.jobs[0][0].params.grammar
    assert grammar is not None
    assert grammar.parts[0].field == "tools.0.function.parameters"


async def test_tool_choice_none() -> None:
    """With none the model is not told of the tools, and any text is allowed."""
    engine = FakeEngine()
    await chat.handle(ASK | {"tool_choice": "none"}, fake_context(engine))
    assert engine.tools == [()]
    assert engine.jobs[0][0].params.grammar is None


@pytest.mark.parametrize(
    "changes",
    [
        {"tools": [TOOL, {"type": "function", "function": {"name": "b"}}]},
        {"tool_choice": "none"},
        {"parallel_tool_calls": False},
        {"reasoning_effort": "low"},
        {"thinking_token_budget": 5},
        {"reasoning_format": "none"},
    ],
)
async def test_cache_key(changes: dict[str, Any]) -> None:
    """Whatever changes the answer is part of the cache's key."""
    ctx = caching(fake_context())
    keys = {
        (await chat.handle(ASK | {"temperature": 0} | more, ctx))["usage"]["cache"]["key"] for more in ({}, changes)
    }
    assert len(keys) == 2


THINKING = ("<think>", "Hm.", "</think>", "\n\nYes.")


def thinker(reasoning: Any = "optional", **changes: Any) -> FakeEngine:
    visible = {"<think>": 300, "</think>": 301}
    return FakeEngine(THINKING, answer_format=AnswerFormat(reasoning=reasoning, visible=visible, **changes))


async def test_reasoning() -> None:
    """Reasoning is apart from the content, whole and streamed."""
    answer = await chat.handle(ASK, fake_context(thinker()))
    message = {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm."}
    assert answer["choices"][0]["message"] == message
    ChatResponse.model_validate(answer, extra="forbid", strict=True)
    deltas = [chunk["choices"][0]["delta"] async for chunk in chat.stream(ASK, fake_context(thinker()))]
    assert deltas[1:] == [{"reasoning_content": "Hm."}, {"content": "Yes."}, {}]


async def test_reasoning_left_in_the_content() -> None:
    """With REASONING=off, or the request's reasoning_format none, it stays where it is."""
    off = await chat.handle(ASK, replace(fake_context(thinker()), reasoning=False))
    asked = await chat.handle(ASK | {"reasoning_format": "none"}, fake_context(thinker()))
    for answer in (off, asked):
        assert answer["choices"][0]["message"] == {"role": "assistant", "content": "".join(THINKING)}


async def test_no_reasoning() -> None:
    """Effort none turns reasoning off in the template; a model for which that is impossible refuses it by name."""
    engine = thinker(switchable=True)
    await chat.handle(ASK | {"reasoning_effort": "none"}, fake_context(engine))
    assert engine.template_options == [TemplateOptions(arguments='{"enable_thinking": false}')]
    with pytest.raises(InvalidRequest) as caught:
        await chat.handle(ASK | {"reasoning_effort": "none"}, fake_context(thinker()))
    assert caught.value.param == "reasoning_effort"
    with pytest.raises(InvalidRequest, match=r"^reasoning: ") as caught:
        await chat.handle(ASK | {"reasoning": {"effort": "none"}}, fake_context(thinker()))
    assert caught.value.param == "reasoning"
    await chat.handle(ASK | {"reasoning_effort": "none"}, fake_context())  # nothing to turn off


async def test_budget_of_reasoning() -> None:
    """The limit reaches the engine; a model that does not reason has nothing to limit."""
    engine = thinker()
    fields = {"messages": ASK["messages"], "thinking_token_budget": 7}
    await chat.handle(fields, fake_context(engine))
    grammar = engine.jobs[0][0].params.grammar
    assert grammar is not None
    assert grammar.reasoning is not None
    assert (grammar.reasoning.tokens, grammar.reasoning.begin, grammar.reasoning.end) == (7, 300, 301)
    plain = FakeEngine()
    await chat.handle(fields, fake_context(plain))
    assert plain.jobs[0][0].params.grammar is None


OLDER: dict[str, Any] = {"messages": ASK["messages"], "functions": [TOOL["function"]]}


async def test_functions() -> None:
    """OpenAI's older form: the answer has function_call, whole and streamed, and a finish reason of that name."""
    answer = await chat.handle(OLDER, fake_context(FakeEngine(CALL)))
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": "Well.", "function_call": CALLS[0]["function"]}
    assert choice["finish_reason"] == "function_call"
    ChatResponse.model_validate(answer, extra="forbid", strict=True)
    chunks = [chunk async for chunk in chat.stream(OLDER, fake_context(FakeEngine(CALL)))]
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": None},
        {"content": "Well."},
        {"function_call": {"name": "get", "arguments": ""}},
        {"function_call": {"arguments": '{"x": '}},
        {"function_call": {"arguments": "1}"}},
        {},
    ]
    assert chunks[-1]["choices"][0]["finish_reason"] == "function_call"
    for chunk in chunks:
        ChatChunk.model_validate(chunk, extra="forbid", strict=True)


@pytest.mark.parametrize(("choice", "told"), [("auto", True), (None, True), ("none", False), ({"name": "get"}, True)])
async def test_function_call(choice: object, told: bool) -> None:
    """As tool_choice."""
    engine = FakeEngine(CALL[1:] if isinstance(choice, dict) else CALL)
    await chat.handle(OLDER | {"function_call": choice}, fake_context(engine))
    assert engine.tools == [(Tool("get", "It gets.", {"type": "object"}),) if told else ()]
    assert (engine.jobs[0][0].params.grammar is not None) == told


async def test_errors_of_functions_name_them() -> None:
    """A schema that cannot be followed is a field of the older form."""
    engine = FakeEngine(CALL)
    await chat.handle(OLDER, fake_context(engine))
    grammar = engine.jobs[0][0].params.grammar
    assert grammar is not None
    assert (grammar.field, grammar.parts[0].field) == ("functions", "functions.0.parameters")


@pytest.mark.parametrize("include", [True, False])
async def test_reasoning_is_counted_and_may_be_left_out(include: bool) -> None:
    """The usage counts the tokens of reasoning with its tags; with include_reasoning false none of it is returned."""
    engine = FakeEngine(("<think>", "So.", "</think>", "Yes", "."), answer_format=AnswerFormat(reasoning="optional"))
    payload = {"messages": ASK["messages"], "include_reasoning": include, "n": 2}
    answer = await chat.handle(payload, fake_context(engine))
    message = {"role": "assistant", "content": "Yes."} | ({"reasoning_content": "So."} if include else {})
    assert [choice["message"] for choice in answer["choices"]] == [message] * 2
    assert answer["usage"]["completion_tokens_details"] == {"reasoning_tokens": 6}
    chunks = [c async for c in chat.stream(payload | {"stream_options": {"include_usage": True}}, fake_context(engine))]
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    assert any("reasoning_content" in delta for delta in deltas) == include
    assert chunks[-1]["usage"] == answer["usage"]


async def test_both_names_of_reasoning_reach_the_template() -> None:
    """reasoning is vLLM's name of reasoning_content."""
    for name in ("reasoning", "reasoning_content"):
        engine = FakeEngine()
        messages = [*ASK["messages"], {"role": "assistant", "content": "x", name: "why"}, *ASK["messages"]]
        await chat.handle({"messages": messages}, fake_context(engine))
        assert engine.chats[0][1].reasoning == "why"
