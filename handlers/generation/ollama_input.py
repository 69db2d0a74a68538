"""Translates requests of Ollama's API into OpenAI's chat completions and completions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from handlers.schemas.ollama import OllamaChatRequest, OllamaGenerateRequest, OllamaGeneration, OllamaMessage

_OPTIONS: Mapping[str, str] = MappingProxyType(
    {
        "temperature": "temperature",
        "top_k": "top_k",
        "top_p": "top_p",
        "min_p": "min_p",
        "seed": "seed",
        "stop": "stop",
        "repeat_penalty": "repetition_penalty",
        "presence_penalty": "presence_penalty",
        "frequency_penalty": "frequency_penalty",
    }
)
"""Ollama's options by their names, and the fields that they are."""

_FIELDS = (
    (r"max_tokens\b", "options.num_predict"),
    (r"response_format\b.*", "format"),
    (r"reasoning_effort\b", "think"),
    *((rf"{field}\b", f"options.{option}") for option, field in _OPTIONS.items()),
)

CHAT_FIELDS = ((r"messages\.(\d+)\.tool_call_id\b", r"messages.\1"), *_FIELDS)
"""Fields of a chat completion as patterns, and their names in Ollama's request of a chat, for ``renaming``."""

PROMPT_FIELDS = ((r"messages\b.*", "prompt"), *_FIELDS)
"""The same for Ollama's request with a prompt."""

DEFAULTS: Mapping[str, float] = MappingProxyType({"temperature": 0.8, "top_k": 40, "top_p": 0.9})
"""Ollama's own defaults, where they differ from OpenAI's."""


def chat_payload(request: OllamaChatRequest, own: Mapping[str, float]) -> dict[str, Any]:
    """Return the payload of the operation ``chat`` for a chat.

    Args:
        request: the validated request.
        own: the model's own sampling parameters, which take the place of Ollama's defaults.
    """
    chat = _shared(request, own) | {"messages": _messages(request.messages)}
    if request.tools:
        chat["tools"] = [tool.model_dump(exclude_none=True) for tool in request.tools]
    return chat | _logprobs(request) | _reasoning(request)


def prompt_chat_payload(request: OllamaGenerateRequest, own: Mapping[str, float]) -> dict[str, Any]:
    """Return the payload of the operation ``chat`` for a prompt, which is the user's message; arguments as above."""
    system = [{"role": "system", "content": request.system}] if request.system else []
    chat = _shared(request, own) | {"messages": [*system, {"role": "user", "content": request.prompt}]}
    return chat | _logprobs(request) | _reasoning(request)


def completion_payload(request: OllamaGenerateRequest, own: Mapping[str, float]) -> dict[str, Any]:
    """Return the payload of the operation ``completions`` for a prompt that is continued itself; arguments as above."""
    completion = _shared(request, own) | {"prompt": request.prompt}
    completion.setdefault("n_predict", -1)  # OpenAI's default is 16 tokens
    if request.logprobs:
        completion["logprobs"] = request.top_logprobs or 0
    return completion


def _shared(request: OllamaGeneration, own: Mapping[str, float]) -> dict[str, Any]:
    options = request.options.model_dump(exclude_none=True)
    payload: dict[str, Any] = {"model": request.model, "timings_per_token": True}
    payload |= {name: value for name, value in DEFAULTS.items() if name not in own}
    payload |= {field: options[option] for option, field in _OPTIONS.items() if option in options}
    limit = request.options.num_predict
    if limit is not None:
        payload |= {"max_tokens": limit} if limit > 0 else {"n_predict": -1}
    if request.format == "json":
        payload["response_format"] = {"type": "json_object"}
    elif request.format:
        schema = {"name": "answer", "schema": request.format}
        payload["response_format"] = {"type": "json_schema", "json_schema": schema}
    return payload


def _logprobs(request: OllamaGeneration) -> dict[str, Any]:
    return {"logprobs": True, "top_logprobs": request.top_logprobs or 0} if request.logprobs else {}


def _reasoning(request: OllamaGeneration) -> dict[str, Any]:
    if request.think in (None, True):
        return {}
    return {"reasoning_effort": "none" if request.think is False else request.think}


def _messages(messages: Sequence[OllamaMessage]) -> list[dict[str, Any]]:
    """Translate messages; each call of a tool gets an id, which the message with its result refers to."""
    translated: list[dict[str, Any]] = []
    waiting: list[tuple[str, str]] = []  # ids and functions of calls without a result
    for number, message in enumerate(messages):
        chat: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.thinking:
            chat["reasoning_content"] = message.thinking
        if message.tool_calls:
            calls = []
            for index, call in enumerate(message.tool_calls):
                function = call.function
                arguments = json.dumps(function.arguments, ensure_ascii=False)
                call_id = call.id or f"call_{number}_{index}"
                waiting.append((call_id, function.name))
                named = {"name": function.name, "arguments": arguments}
                calls.append({"id": call_id, "type": "function", "function": named})
            chat["tool_calls"] = calls
        if message.role == "tool":
            chat["tool_call_id"] = _answered(message, waiting) or f"call_{number}"
        translated.append(chat)
    return translated


def _answered(message: OllamaMessage, waiting: list[tuple[str, str]]) -> str | None:
    """Return the id of the call whose result a message is, and take it out of the waiting ones."""
    name = message.tool_name or message.name
    found = next((call for call in waiting if name in (None, call[1])), None)
    if message.tool_call_id is not None:
        found = next((call for call in waiting if call[0] == message.tool_call_id), None)
    if found is not None:
        waiting.remove(found)
    return message.tool_call_id or (None if found is None else found[0])
