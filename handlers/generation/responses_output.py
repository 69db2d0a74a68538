"""Builds OpenAI's Response and the events of its stream from a chat completion."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from handlers.generation.responses_input import logprobs_wanted
from handlers.generation.translated_chat import Event
from handlers.schemas.requests import ChatRequest
from handlers.schemas.responses_api import ResponsesRequest
from runtime.errors import ServiceError


class ResponseBuilder:
    """Builds a response piece by piece: each method returns the events of the stream for what it adds.

    Args:
        request: the validated request.
        chat: the chat completion, or the first chunk of one.
        now: returns the Unix time in seconds.
        kept: whether the response is kept.
    """

    def __init__(
        self, request: ResponsesRequest, chat: Mapping[str, Any], now: Callable[[], float], *, kept: bool = False
    ) -> None:
        self._now = now
        self._suffix = chat["id"].removeprefix("chatcmpl-")
        self.response: dict[str, Any] = _head(request, chat, f"resp_{self._suffix}", kept=kept)
        self._output: list[dict[str, Any]] = []  # finished items
        self._open: str | tuple[str, int] | None = None  # message, reasoning, or a call and its index
        self._item: dict[str, Any] = {}  # as it was when it was opened
        self._pieces: list[str] = []  # of the open item's text or arguments
        self._logprobs: list[dict[str, Any]] = []  # of the message
        self._reason: str | None = None
        self._number = 0

    def start(self) -> list[Event]:
        """Return the events that begin the stream."""
        return [self._event(f"response.{name}", response=self.response) for name in ("created", "in_progress")]

    def add(self, choice: Mapping[str, Any]) -> list[Event]:
        """Add a choice of a chunk, or the only choice of a whole chat completion.

        Args:
            choice: the choice, with a ``delta`` or a ``message``.
        """
        delta = choice.get("delta") or choice.get("message") or {}
        logprobs = (choice.get("logprobs") or {}).get("content") or []
        self._logprobs += logprobs
        self._reason = choice.get("finish_reason") or self._reason
        events: list[Event] = []
        if text := delta.get("reasoning_content"):
            events += self._add_text("reasoning", text)
        if text := delta.get("content"):
            events += self._add_text("message", text, logprobs)
        for index, call in enumerate(delta.get("tool_calls") or ()):
            events += self._add_call(call.get("index", index), call)
        return events

    def finish(self, last: Mapping[str, Any]) -> list[Event]:
        """End the response; ``response`` is complete then.

        Args:
            last: the last chunk of the chat completion, or the whole completion, with the usage.
        """
        events: list[Event] = []
        if self._open in (None, "reasoning") and not any(item["type"] != "reasoning" for item in self._output):
            events += self._open_text("message")
        cut = self._reason == "length"
        status = "incomplete" if cut else "completed"
        events += self._close(status)
        self.response = self.response | {
            "status": status,
            "completed_at": None if cut else int(self._now()),
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": self._output,
            "usage": _usage(last["usage"]),
        }
        return [*events, self._event(f"response.{status}", response=self.response)]

    def failed(self, error: ServiceError) -> list[Event]:
        """Return the event of a response that an error ends."""
        code = "server_error" if error.status >= 500 else "invalid_prompt"
        code = "rate_limit_exceeded" if error.status == 429 else code
        ended = {"status": "failed", "error": {"code": code, "message": error.message}, "output": self._output}
        return [self._event("response.failed", response=self.response | ended)]

    def _add_text(self, kind: str, text: str, logprobs: Sequence[dict[str, Any]] = ()) -> list[Event]:
        events = [] if self._open == kind else self._open_text(kind)
        self._pieces.append(text)
        if kind == "message":
            return [*events, self._part_event("response.output_text.delta", delta=text, logprobs=list(logprobs))]
        return [*events, self._part_event("response.reasoning_text.delta", delta=text)]

    def _open_text(self, kind: str) -> list[Event]:
        events = self._close()
        if kind == "message":
            item = {"id": self._id("msg"), "type": kind, "status": "in_progress", "role": "assistant", "content": []}
        else:
            item = {"id": self._id("rs"), "type": kind, "status": "in_progress", "summary": [], "content": []}
        events += self._open_item(kind, item)
        return [*events, self._part_event("response.content_part.added", part=_part(kind, "", []))]

    def _add_call(self, index: int, call: Mapping[str, Any]) -> list[Event]:
        function = call.get("function") or {}
        events: list[Event] = []
        if self._open != ("call", index):
            events = self._close()
            item = {"id": self._id("fc"), "type": "function_call", "status": "in_progress"}
            item |= {"call_id": call.get("id", ""), "name": function.get("name", ""), "arguments": ""}
            events += self._open_item(("call", index), item)
        if piece := function.get("arguments"):
            self._pieces.append(piece)
            events.append(self._item_event("response.function_call_arguments.delta", delta=piece))
        return events

    def _open_item(self, kind: str | tuple[str, int], item: dict[str, Any]) -> list[Event]:
        self._open, self._item, self._pieces = kind, item, []
        return [self._event("response.output_item.added", output_index=len(self._output), item=item)]

    def _close(self, status: str = "completed") -> list[Event]:
        """Finish the open item."""
        if self._open is None:
            return []
        text = "".join(self._pieces)
        if isinstance(self._open, str):
            message = self._open == "message"
            part = _part(self._open, text, self._logprobs)
            name = "output_text" if message else "reasoning_text"
            known = {"text": text} | ({"logprobs": self._logprobs} if message else {})
            events = [
                self._part_event(f"response.{name}.done", **known),
                self._part_event("response.content_part.done", part=part),
            ]
            item = self._item | {"status": status, "content": [part]}
            self._logprobs = []
        else:
            done = "response.function_call_arguments.done"
            events = [self._item_event(done, name=self._item["name"], arguments=text)]
            item = self._item | {"status": status, "arguments": text}
        events.append(self._event("response.output_item.done", output_index=len(self._output), item=item))
        self._output.append(item)
        self._open = None
        return events

    def _id(self, prefix: str) -> str:
        return f"{prefix}_{self._suffix}_{len(self._output)}"

    def _part_event(self, kind: str, **members: Any) -> Event:
        return self._item_event(kind, content_index=0, **members)

    def _item_event(self, kind: str, **members: Any) -> Event:
        return self._event(kind, item_id=self._item["id"], output_index=len(self._output), **members)

    def _event(self, kind: str, **members: Any) -> Event:
        event = {"type": kind, "sequence_number": self._number} | members
        self._number += 1
        return event


def _part(kind: str, text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    if kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _head(request: ResponsesRequest, chat: Mapping[str, Any], name: str, *, kept: bool) -> dict[str, Any]:
    """Return the response before anything is generated, with the request's fields as they apply."""
    form = None if request.text is None else request.text.format
    choice = request.tool_choice
    return {
        "id": name,
        "object": "response",
        "created_at": chat["created"],
        "status": "in_progress",
        "completed_at": None,
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "max_tool_calls": request.max_tool_calls,
        "metadata": request.metadata or {},
        "model": chat["model"],
        "output": [],
        "parallel_tool_calls": request.parallel_tool_calls,
        "previous_response_id": request.previous_response_id,
        "prompt_cache_key": request.prompt_cache_key,
        "reasoning": {"effort": None if request.reasoning is None else request.reasoning.effort, "summary": None},
        "safety_identifier": request.safety_identifier,
        "service_tier": "default",
        "store": kept,
        "temperature": _applied(request, "temperature"),
        "text": {"format": {"type": "text"} if form is None else form.model_dump(by_alias=True, exclude_none=True)},
        "tool_choice": choice if isinstance(choice, str) else choice.model_dump() if choice else "auto",
        "tools": [_tool(tool.model_dump()) for tool in request.tools or ()],
        "top_logprobs": (request.top_logprobs or 0) if logprobs_wanted(request) else 0,
        "top_p": _applied(request, "top_p"),
        "truncation": "disabled",
        "usage": None,
        "user": request.user,
    }


def _applied(request: ResponsesRequest, name: str) -> Any:
    given = name in request.model_fields_set
    return getattr(request, name) if given else ChatRequest.model_fields[name].default


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    return tool | {"strict": tool["strict"] or False}


def _usage(usage: Mapping[str, Any]) -> dict[str, Any]:
    details = usage.get("completion_tokens_details") or {}
    translated = {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {
            "cached_tokens": usage["prompt_tokens_details"]["cached_tokens"],
            "cache_write_tokens": 0,
        },
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": details.get("reasoning_tokens") or 0},
        "total_tokens": usage["total_tokens"],
    }
    return translated | ({"cache": usage["cache"]} if "cache" in usage else {})
