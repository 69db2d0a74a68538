"""Translates a request of Anthropic's Messages API into one of OpenAI's chat completions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from handlers.schemas.messages_api import CountTokensRequest, ToolChoice
from handlers.schemas.messages_api_blocks import InputTurn, TextBlock, ThinkingBlock, ToolResultBlock, ToolUseBlock

FIELDS = (
    (r"messages\b.*", "messages"),
    (r"continue_final_message\b", "messages"),
    (r"response_format\.json_schema\b", "output_config.format"),
    (r"response_format\b", "output_config.format"),
    (r"tools\.(\d+)\.function\.parameters\b", r"tools.\1.input_schema"),
    (r"tools\.(\d+)\.function\b", r"tools.\1"),
    (r"parallel_tool_calls\b", "tool_choice.disable_parallel_tool_use"),
    (r"stop\b", "stop_sequences"),
    (r"reasoning_effort\b", "thinking.type"),
    (r"thinking_token_budget\b", "thinking.budget_tokens"),
)
"""Fields of a chat completion as patterns, and their names in the Messages API, for ``renaming``."""

_SHARED = ("model", "max_tokens", "temperature", "top_p", "top_k", "seed")  # passed on as they are
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def chat_payload(request: CountTokensRequest, payload: Mapping[str, Any]) -> dict[str, Any]:
    """Return the payload of the operation ``chat`` for a request.

    Args:
        request: the validated request.
        payload: the payload that it was read from.
    """
    chat: dict[str, Any] = {name: payload[name] for name in _SHARED if name in payload}
    chat["messages"] = _messages(request)
    if payload.get("stop_sequences"):
        chat["stop"] = payload["stop_sequences"]
    if isinstance(request.cache_control, str):
        chat["cache_control"] = request.cache_control
    if request.messages[-1].role == "assistant":
        chat["continue_final_message"] = True
    form = request.output_format or (None if request.output_config is None else request.output_config.format)
    if form is not None:
        schema = {"name": "answer", "schema": form.definition, "strict": True}
        chat["response_format"] = {"type": "json_schema", "json_schema": schema}
    chat |= _reasoning(request)
    if request.tools:
        chat["tools"] = [
            {"type": "function", "function": _function(tool.model_dump(exclude_none=True))} for tool in request.tools
        ]
        if request.tool_choice is not None:
            chat |= _tool_choice(request.tool_choice)
    return chat


def _reasoning(request: CountTokensRequest) -> dict[str, Any]:
    effort = None if request.output_config is None else request.output_config.effort
    chat: dict[str, Any] = {} if effort is None else {"reasoning_effort": effort}
    if request.thinking is not None and request.thinking.type == "disabled":
        chat["reasoning_effort"] = "none"
    if request.thinking is not None and request.thinking.budget_tokens is not None:
        chat["thinking_token_budget"] = request.thinking.budget_tokens
    return chat


def _messages(request: CountTokensRequest) -> list[dict[str, Any]]:
    messages = [] if request.system is None else [{"role": "system", "content": _text(request.system)}]
    for turn in request.messages:
        messages += _turn(turn)
    return messages


def _turn(turn: InputTurn) -> list[dict[str, Any]]:
    """Translate one turn; each result of a tool becomes a message of its own."""
    if isinstance(turn.content, str):
        return [{"role": turn.role, "content": turn.content}]
    texts = [block for block in turn.content if isinstance(block, TextBlock)]
    results = [block for block in turn.content if isinstance(block, ToolResultBlock)]
    calls = [_call(block) for block in turn.content if isinstance(block, ToolUseBlock)]
    messages: list[dict[str, Any]] = [
        {"role": "tool", "tool_call_id": result.tool_use_id, "content": _result(result)} for result in results
    ]
    if texts or not results:
        reasoning = "".join(block.thinking or "" for block in turn.content if isinstance(block, ThinkingBlock))
        more = {"tool_calls": calls, "reasoning_content": reasoning}
        message = {"role": turn.role, "content": _text(texts)}
        messages.append(message | {name: value for name, value in more.items() if value})
    return messages


def _call(block: ToolUseBlock) -> dict[str, Any]:
    function = {"name": block.name, "arguments": json.dumps(block.input, ensure_ascii=False)}
    return {"id": block.id, "type": "function", "function": function}


def _result(block: ToolResultBlock) -> str:
    text = "" if block.content is None else _text(block.content)
    return f"Error: {text}" if block.is_error else text


def _text(content: str | Sequence[TextBlock]) -> str:
    return content if isinstance(content, str) else "".join(block.text for block in content)


def _function(tool: dict[str, Any]) -> dict[str, Any]:
    function = {name: tool[name] for name in ("name", "description", "strict") if name in tool}
    return function | {"parameters": tool["input_schema"]}


def _tool_choice(choice: ToolChoice) -> dict[str, Any]:
    named = {"type": "function", "function": {"name": choice.name}}
    return {
        "tool_choice": named if choice.type == "tool" else _CHOICES[choice.type],
        "parallel_tool_calls": not choice.disable_parallel_tool_use,
    }
