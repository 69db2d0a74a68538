"""Translates a request of OpenAI's Responses API into one of its chat completions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from handlers.schemas.base import Cacheable
from handlers.schemas.decisions import DecisionItem, DecisionMessage
from handlers.schemas.function_tools import AllowedTools, FunctionTool, NamedFunction
from handlers.schemas.responses_api import ResponsesRequest
from handlers.schemas.responses_api_items import FunctionCallItem, FunctionCallOutputItem, InputMessage, Item

FIELDS = (
    (r"messages\b.*", "input"),
    (r"response_format\.json_schema\b", "text.format"),
    (r"response_format\b", "text.format"),
    (r"tools\.(\d+)\.function\b", r"tools.\1"),
    (r"max_(completion_)?tokens\b", "max_output_tokens"),
    (r"reasoning_effort\b", "reasoning.effort"),
)
"""Fields of a chat completion as patterns, and their names in the Responses API, for ``renaming``."""

_SHARED = Cacheable.model_fields.keys() - {"stream"}  # passed on as they are


def chat_payload(request: ResponsesRequest, payload: Mapping[str, Any]) -> dict[str, Any]:
    """Return the payload of the operation ``chat`` for a request.

    Args:
        request: the validated request.
        payload: the payload that it was read from.
    """
    chat = {name: value for name, value in payload.items() if name in _SHARED}
    chat["messages"] = _messages(request)
    if request.max_output_tokens is not None:
        chat["max_completion_tokens"] = request.max_output_tokens
    if logprobs_wanted(request):
        chat |= {"logprobs": True, "top_logprobs": request.top_logprobs or 0}
    form = None if request.text is None else request.text.format
    if form is not None:
        chat["response_format"] = _response_format(form.model_dump(by_alias=True, exclude_none=True))
    if request.reasoning is not None and request.reasoning.effort is not None:
        chat["reasoning_effort"] = request.reasoning.effort
    if request.tools:
        chat |= {"tools": _tools(request), "parallel_tool_calls": request.parallel_tool_calls}
        if request.tool_choice is not None:
            chat["tool_choice"] = _tool_choice(request)
    return chat


def logprobs_wanted(request: ResponsesRequest) -> bool:
    """Whether the response has log-probabilities."""
    return request.top_logprobs is not None or "message.output_text.logprobs" in (request.include or ())


def _messages(request: ResponsesRequest) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if request.instructions is not None:
        messages.append({"role": "system", "content": request.instructions})
    if isinstance(request.input, str):
        return [*messages, {"role": "user", "content": request.input}]
    return messages + item_messages(request.input, _text)


def item_messages(items: Iterable[Item | DecisionItem], text: Callable[[Any], str]) -> list[dict[str, Any]]:
    """Return items of a conversation as messages of a chat completion.

    Calls belong to the assistant's message before them; reasoning is left out.

    Args:
        items: the validated items.
        text: returns the text of a content, which is a text or a list of parts.
    """
    messages: list[dict[str, Any]] = []
    for item in items:
        if isinstance(item, InputMessage | DecisionMessage):
            messages.append({"role": item.role, "content": text(item.content)})
        elif isinstance(item, FunctionCallOutputItem):
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": text(item.output)})
        elif isinstance(item, FunctionCallItem):
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": None})
            function = {"name": item.name, "arguments": item.arguments}
            call = {"id": item.call_id, "type": "function", "function": function}
            messages[-1].setdefault("tool_calls", []).append(call)
    return messages


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _response_format(form: dict[str, Any]) -> dict[str, Any]:
    if form["type"] != "json_schema":
        return form
    return {"type": "json_schema", "json_schema": {name: value for name, value in form.items() if name != "type"}}


def _tools(request: ResponsesRequest) -> list[dict[str, Any]]:
    """Return the tools in the chat's form."""
    tools: list[FunctionTool] = request.tools or []
    return [{"type": "function", "function": tool.model_dump(exclude={"type"}, exclude_none=True)} for tool in tools]


def _tool_choice(request: ResponsesRequest) -> str | dict[str, Any]:
    choice = request.tool_choice
    if isinstance(choice, NamedFunction):
        return _named(choice)
    if isinstance(choice, AllowedTools):
        allowed = {"mode": choice.mode, "tools": [_named(tool) for tool in choice.tools]}
        return {"type": "allowed_tools", "allowed_tools": allowed}
    return choice or "auto"


def _named(function: NamedFunction) -> dict[str, Any]:
    return {"type": "function", "function": {"name": function.name}}
