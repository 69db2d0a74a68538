"""Builds the variables that chat templates read: messages, tool calls, tool results and the definitions of tools.

Templates of models that know tools take all of these. For the others calls are written into the assistant's text,
results become a user's message, and the tools are described in the system's or the first user's message.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import groupby
from typing import Any, Literal

from runtime.answer_format import GENERIC, ToolSyntax
from runtime.model.message_text import Marks
from runtime.types import Message, Tool, ToolCall


@dataclass(frozen=True, slots=True)
class TurnForm:
    """A form in which a template may read messages and tools.

    Args:
        parts: whether a content is a list with one text part, as in OpenAI's API, rather than a string.
        calls: whether calls are members of a message, with their arguments as an ``object`` or as JSON ``text``; or are
            written into the ``content``, as their results are.
        tools: whether the tools are a variable of the ``template``, or are described in the ``system``'s or the first
            ``user``'s message.
    """

    parts: bool = False
    calls: Literal["object", "text", "content"] = "object"
    tools: Literal["template", "system", "user"] = "template"


PLAIN_FORMS = (TurnForm(), TurnForm(parts=True))
"""The forms of a chat without tools and calls."""


def tool_forms(syntax: ToolSyntax, messages: Sequence[Message] = ()) -> tuple[TurnForm, ...]:
    """Return the forms of a chat with tools or calls in the order in which to try them.

    Args:
        syntax: how the model writes calls; ``GENERIC`` if its template does not read tools in a known way. A template
            whose model is asked for another syntax writes calls of earlier messages in its own, so they are content.
        messages: the chat's messages. Arguments that are no JSON object are content, as the model wrote them.
    """
    calls: tuple[Literal["object", "text", "content"], ...] = ("object", "text", "content")
    if syntax.instruction or not all(is_object(call.arguments) for turn in messages for call in turn.tool_calls):
        calls = ("content",)
    native = [] if syntax == GENERIC else [TurnForm(parts, form) for form in calls for parts in (False, True)]
    places: tuple[Literal["system", "user"], ...] = ("system", "user")
    return (*native, *(TurnForm(parts, "content", place) for place in places for parts in (False, True)))


def is_object(arguments: str) -> bool:
    """Return whether a call's arguments are the text of a JSON object."""
    try:
        return isinstance(json.loads(arguments), dict)
    except (ValueError, RecursionError):
        return False


def turns(
    messages: Sequence[Message], tools: Sequence[Tool], syntax: ToolSyntax, form: TurnForm, marks: Marks
) -> list[dict[str, Any]]:
    """Return the variable ``messages``.

    Args:
        messages: the chat's messages.
        tools: the tools that the model is told of.
        syntax: how the model writes calls.
        form: the form of the messages.
        marks: marks the characters that are not the template's.
    """
    names = {call.id: call.name for message in messages for call in message.tool_calls}
    found: list[dict[str, Any]] = []
    for result, group in groupby(messages, lambda message: form.calls == "content" and message.role == "tool"):
        if result:
            found.append({"role": "user", "content": marks.join(_lines(group, marks))})
        else:
            found += [_turn(message, names, syntax, form, marks) for message in group]
    native = form.tools == "template"
    if tools and (not native or syntax.in_system or syntax.instruction):
        turn = _turn_of("user" if form.tools == "user" else "system", found)
        text = syntax.instruction if native else _describe(tools, syntax, marks)
        turn["content"] = marks.join([turn["content"], "\n\n" if turn["content"] and text else "", text])
        if native and syntax.in_system:
            turn["tools"] = marks.mark(json.dumps(definitions(tools, str), ensure_ascii=False))
    if form.parts:
        for turn in found:
            turn["content"] = [{"type": "text", "text": turn["content"]}]
    return found


def definitions(tools: Sequence[Tool], mark: Callable[[str], str]) -> list[dict[str, Any]]:
    """Return the variable ``tools``: the definitions in OpenAI's form, with all strings passed to ``mark``."""
    return [{"type": "function", "function": _function(tool, mark)} for tool in tools]


def _turn_of(role: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the system's message, which is the first, or the first user's message; it is inserted if there is none."""
    turn = next((turn for turn in found[: 1 if role == "system" else None] if turn["role"] == role), None)
    if turn is None:
        turn = {"role": role, "content": ""}
        found.insert(0, turn)
    return turn


def _function(tool: Tool, mark: Callable[[str], str]) -> dict[str, Any]:
    described = {"description": mark(tool.description)} if tool.description else {}
    parameters = {"type": "object", "properties": {}, **tool.parameters}
    return {"name": mark(tool.name), **described, "parameters": _marked(parameters, mark)}


def _turn(
    message: Message, names: Mapping[str, str], syntax: ToolSyntax, form: TurnForm, marks: Marks
) -> dict[str, Any]:
    content: str = marks.mark(message.content)
    turn: dict[str, Any] = {"role": message.role}
    if message.reasoning:
        turn["reasoning_content"] = marks.mark(message.reasoning)
    if message.tool_calls and form.calls == "content":
        space = "\n" if message.content else ""
        content = marks.join([content, space, *_written(message.tool_calls, syntax, marks)])
    elif message.tool_calls:
        turn["tool_calls"] = [_call(call, syntax, form, marks) for call in message.tool_calls]
    if message.tool_call_id is not None:
        turn["tool_call_id"] = marks.mark(_id(message.tool_call_id, syntax))
        turn["name"] = marks.mark(names.get(message.tool_call_id, ""))
    return turn | {"content": content}


def _call(call: ToolCall, syntax: ToolSyntax, form: TurnForm, marks: Marks) -> dict[str, Any]:
    values = _marked(json.loads(call.arguments), marks.mark)
    arguments = values if form.calls == "object" else marks.mark(call.arguments)
    function = {"name": marks.mark(call.name), "arguments": arguments}
    return {"id": marks.mark(_id(call.id, syntax)), "type": "function", "function": function}


def _id(call_id: str, syntax: ToolSyntax) -> str:
    """Return a call's id in the length that the template accepts."""
    return sha256(call_id.encode()).hexdigest()[: syntax.id_length] if syntax.id_length else call_id


def _marked(value: Any, mark: Callable[[str], str]) -> Any:
    """Return a JSON value whose strings, names of members included, are marked."""
    if isinstance(value, str):
        return mark(value)
    if isinstance(value, Mapping):
        return {mark(name): _marked(member, mark) for name, member in value.items()}
    return [_marked(item, mark) for item in value] if isinstance(value, list) else value


def _written(calls: Sequence[ToolCall], syntax: ToolSyntax, marks: Marks) -> list[str]:
    """Return the pieces of calls in the model's syntax."""
    pieces = [syntax.begin]
    for index, call in enumerate(calls):
        pieces += [syntax.separator if index else "", syntax.before_name, marks.mark(call.name)]
        pieces += [syntax.before_arguments, marks.mark(call.arguments), syntax.after_arguments]
    return [*pieces, syntax.end]


def _lines(results: Any, marks: Marks) -> list[str]:
    pieces: list[str] = []
    for message in results:
        pieces += ["\n" if pieces else "", "<tool_response>\n", marks.mark(message.content), "\n</tool_response>"]
    return pieces


def _describe(tools: Sequence[Tool], syntax: ToolSyntax, marks: Marks) -> str:
    """Return the description of the tools for models whose template knows none."""
    pieces = ["You can call these functions, described as JSON:\n"]
    for tool in tools:
        pieces += [marks.mark(json.dumps(_function(tool, str), ensure_ascii=False)), "\n"]
    example = _written([ToolCall("", "NAME", '{"ARGUMENT": "VALUE"}')], syntax, marks)
    after = "\nThe results come in the next message, each between <tool_response> and </tool_response>."
    return marks.join([*pieces, "\nTo call a function, write its name and its arguments like this:\n", *example, after])
