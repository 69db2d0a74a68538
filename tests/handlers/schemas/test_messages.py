"""A chat's messages: what clients put back into the history."""

from __future__ import annotations

from typing import Any

import pytest

from handlers.generation.checks import chat_messages
from handlers.schemas.parsing import parse
from handlers.schemas.requests import ChatRequest
from runtime.errors import InvalidRequest
from runtime.types import Message, ToolCall

# What the official client's message.model_dump() has beside role and content.
DUMPED: dict[str, Any] = dict.fromkeys(("refusal", "annotations", "audio", "function_call", "tool_calls"))


def _read(message: dict[str, Any]) -> str:
    request = parse(ChatRequest, {"messages": [message]})
    (found,) = chat_messages(request.messages)
    return found.content


@pytest.mark.parametrize("more", [{}, DUMPED, {"tool_calls": [], "annotations": [], "refusal": ""}])
@pytest.mark.parametrize("content", ["x", "", None])
def test_an_answer_put_back(content: str | None, more: dict[str, Any]) -> None:
    """The client's own dump of an answer is a message; no content is an empty text."""
    assert _read({"role": "assistant", "content": content} | more) == (content or "")
    assert _read({"role": "assistant"} | more) == ""


@pytest.mark.parametrize("role", ["user", "system", "developer"])
@pytest.mark.parametrize("content", [{}, {"content": None}])
def test_others_say_something(role: str, content: dict[str, Any]) -> None:
    """Only an assistant may have said nothing."""
    with pytest.raises(InvalidRequest, match=r"^messages\.0\.content: field required$"):
        _read({"role": role} | content)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("audio", {"id": "a"}),
        ("refusal", "I cannot."),
        ("annotations", [{"type": "url_citation"}]),
    ],
)
def test_what_is_not_supported(field: str, value: object) -> None:
    """What a model would have to be shown, and cannot be, is refused by name."""
    with pytest.raises(InvalidRequest, match=rf"^messages\.0\.{field}: .* not supported by this server") as caught:
        _read({"role": "assistant", "content": None, field: value})
    assert caught.value.param == f"messages.0.{field}"


def test_message_repeated_in_its_part() -> None:
    """What a client repeats of an answer in its text part changes nothing, of an assistant only."""
    part = {"type": "text", "text": "x", "role": "assistant", "tool_calls": None, "reasoning_content": "Hm."}
    assert _read({"role": "assistant", "content": [part]}) == "x"
    with pytest.raises(InvalidRequest) as caught:
        _read({"role": "assistant", "content": [part | {"role": "user"}]})
    assert caught.value.param == "messages.0.content.0.role"


@pytest.mark.parametrize("mark", [{"type": "ephemeral"}, {"type": "ephemeral", "ttl": "1h"}, None])
def test_cache_control_of_a_part(mark: dict[str, Any] | None) -> None:
    """Anthropic's mark for prompt caching is taken on a text part, and changes nothing."""
    assert _read({"role": "user", "content": [{"type": "text", "text": "x", "cache_control": mark}]}) == "x"


def test_no_other_cache_control() -> None:
    """Marks of another kind are refused by name."""
    part = {"type": "text", "text": "x", "cache_control": {"type": "forever"}}
    with pytest.raises(InvalidRequest) as caught:
        _read({"role": "user", "content": [part]})
    assert caught.value.param == "messages.0.content.0.cache_control.type"


def _call(**changes: Any) -> dict[str, Any]:
    function = {"name": "f", "arguments": '{"x": 1}', "parsed_arguments": None} | changes
    return {"id": "1", "type": "function", "index": 0, "function": function}


def test_calls_and_their_results() -> None:
    """Calls and results in the history keep their ids and arguments, also those that were cut off; none are {}."""
    messages = [
        {"role": "assistant", "content": None, "tool_calls": [_call(), _call(arguments=""), _call(arguments='{"x":')]},
        {"role": "tool", "content": [{"type": "text", "text": "r"}], "tool_call_id": "1"},
        {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm."},
    ]
    assert chat_messages(parse(ChatRequest, {"messages": messages}).messages) == (
        Message(
            "assistant", "", (ToolCall("1", "f", '{"x": 1}'), ToolCall("1", "f", "{}"), ToolCall("1", "f", '{"x":'))
        ),
        Message("tool", "r", tool_call_id="1"),
        Message("assistant", "Yes.", reasoning="Hm."),
    )


def test_calls_of_functions() -> None:
    """OpenAI's older form has no ids: a result is that of the function's last call."""
    messages = [
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": ""}},
        {"role": "function", "name": "f", "content": "1"},
        {"role": "assistant", "content": "So.", "function_call": {"name": "f", "arguments": '{"x": 1}'}},
        {"role": "function", "name": "f", "content": "2"},
        {"role": "function", "name": "g", "content": "3"},
    ]
    assert chat_messages(parse(ChatRequest, {"messages": messages}).messages) == (
        Message("assistant", "", (ToolCall("call_0", "f", "{}"),)),
        Message("tool", "1", tool_call_id="call_0"),
        Message("assistant", "So.", (ToolCall("call_2", "f", '{"x": 1}'),)),
        Message("tool", "2", tool_call_id="call_2"),
        Message("tool", "3", tool_call_id="call_4"),
    )


@pytest.mark.parametrize(
    ("message", "param", "says"),
    [
        ({"role": "tool", "content": "r"}, "tool_call_id", "field required"),
        ({"role": "tool", "tool_call_id": "1"}, "content", "field required"),
        ({"role": "user", "content": "x", "tool_call_id": "1"}, "tool_call_id", "only a tool's message"),
        ({"role": "function", "content": "r"}, "name", "field required"),
        ({"role": "function", "name": "f"}, "content", "field required"),
        ({"role": "user", "content": "x", "function_call": {"name": "f", "arguments": ""}}, "function_call", "only an"),
        ({"role": "user", "content": "x", "tool_calls": [_call()]}, "tool_calls", "only an assistant's message"),
        ({"role": "user", "content": "x", "reasoning_content": "x"}, "reasoning_content", "only an assistant's"),
        ({"role": "assistant", "tool_calls": [_call(arguments={})]}, "tool_calls.0.function.arguments", "string"),
        ({"role": "assistant", "tool_calls": [_call(name="a b")]}, "tool_calls.0.function.name", "match"),
    ],
)
def test_wrong_calls_and_results(message: dict[str, Any], param: str, says: str) -> None:
    """The error names the member that is missing, wrong or of another role."""
    with pytest.raises(InvalidRequest) as caught:
        _read(message)
    assert caught.value.param == f"messages.0.{param}"
    assert says in caught.value.message
