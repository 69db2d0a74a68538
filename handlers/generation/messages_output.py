"""Builds Anthropic's Message and the events of its stream from a chat completion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from handlers.generation.translated_chat import Event, call_arguments
from handlers.schemas.messages_api import MessagesRequest
from runtime.errors import ServiceError

_DELTAS = {"text": "text_delta", "thinking": "thinking_delta", "tool_use": "input_json_delta"}


class MessageBuilder:
    """Builds a message piece by piece: each method returns the events of the stream for what it adds.

    Args:
        request: the validated request.
        chat: the chat completion, or the first chunk of one.
    """

    def __init__(self, request: MessagesRequest, chat: Mapping[str, Any]) -> None:
        self._request = request
        self.message: dict[str, Any] = {
            "id": f"msg_{chat['id'].removeprefix('chatcmpl-')}",
            "type": "message",
            "role": "assistant",
            "model": chat["model"],
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": _usage(chat.get("usage")) | {"output_tokens": 0, "service_tier": "standard"},
        }
        self._content: list[dict[str, Any]] = []  # finished blocks
        self._open: str | tuple[str, int] | None = None  # text, thinking, or a call and its index
        self._block: dict[str, Any] = {}  # as it was when it was opened
        self._pieces: list[str] = []  # of the open block's text or input
        self._reason: str | None = None
        self._stop: str | None = None

    def start(self) -> list[Event]:
        """Return the events that begin the stream."""
        return [{"type": "message_start", "message": self.message}, {"type": "ping"}]

    def add(self, choice: Mapping[str, Any]) -> list[Event]:
        """Add a choice of a chunk, or the only choice of a whole chat completion.

        Args:
            choice: the choice, with a ``delta`` or a ``message``.
        """
        delta = choice.get("delta") or choice.get("message") or {}
        self._reason = choice.get("finish_reason") or self._reason
        if isinstance(stop := choice.get("stop_reason"), str) and stop in (self._request.stop_sequences or ()):
            self._stop = stop
        events: list[Event] = []
        if text := delta.get("reasoning_content"):
            events += self._add("thinking", {"type": "thinking", "thinking": "", "signature": ""}, text)
        if text := delta.get("content"):
            events += self._add("text", {"type": "text", "text": ""}, text)
        for index, call in enumerate(delta.get("tool_calls") or ()):
            function = call.get("function") or {}
            block = {"type": "tool_use", "id": call.get("id"), "name": function.get("name"), "input": {}}
            events += self._add(("call", call.get("index", index)), block, function.get("arguments") or "")
        return events

    def finish(self, last: Mapping[str, Any]) -> list[Event]:
        """End the message; ``message`` is complete then.

        Args:
            last: the last chunk of the chat completion, or the whole completion, with the usage.
        """
        usage = last["usage"]
        events: list[Event] = []
        if self._open in (None, "thinking") and not any(block["type"] != "thinking" for block in self._content):
            events += self._add("text", {"type": "text", "text": ""}, "")
        events += self._close()
        ended = {"stop_reason": self._stop_reason(usage), "stop_sequence": self._stop}
        counted = _usage(usage)
        self.message = self.message | {"content": self._content} | ended
        self.message["usage"] = self.message["usage"] | counted
        return [*events, {"type": "message_delta", "delta": ended, "usage": counted}, {"type": "message_stop"}]

    def failed(self, error: ServiceError) -> list[Event]:
        """Return no events: a stream of messages ends with the error alone."""
        return []

    def _stop_reason(self, usage: Mapping[str, Any]) -> str:
        if self._reason == "length":
            cut = usage["completion_tokens"] >= self._request.max_tokens
            return "max_tokens" if cut else "model_context_window_exceeded"
        if self._reason == "tool_calls":
            return "tool_use"
        return "end_turn" if self._stop is None else "stop_sequence"

    def _add(self, kind: str | tuple[str, int], block: dict[str, Any], piece: str) -> list[Event]:
        events: list[Event] = []
        if self._open != kind:
            events = self._close()
            self._open, self._block, self._pieces = kind, block, []
            events.append({"type": "content_block_start", "index": len(self._content), "content_block": block})
        if piece:
            self._pieces.append(piece)
            delta = {"type": _DELTAS[self._block["type"]], _piece_name(self._block): piece}
            events.append({"type": "content_block_delta", "index": len(self._content), "delta": delta})
        return events

    def _close(self) -> list[Event]:
        """Finish the open block."""
        if self._open is None:
            return []
        self._open = None
        index = len(self._content)
        events: list[Event] = [{"type": "content_block_stop", "index": index}]
        if self._block["type"] == "thinking":  # which clients take as complete with its signature
            delta = {"type": "signature_delta", "signature": ""}
            events.insert(0, {"type": "content_block_delta", "index": index, "delta": delta})
        self._content.append(finished_block(self._block, "".join(self._pieces)))
        return events


def finished_block(block: Mapping[str, Any], text: str) -> dict[str, Any]:
    """Return a block with its whole text.

    Args:
        block: the block as it began.
        text: the text; that of a ``tool_use`` block is JSON, which is an empty object if it was cut off.
    """
    if block["type"] != "tool_use":
        return {**block, block["type"]: text}
    return {**block, "input": call_arguments(text)}


def _piece_name(block: Mapping[str, Any]) -> str:
    return "partial_json" if block["type"] == "tool_use" else str(block["type"])


def _usage(usage: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return Anthropic's counts; its input tokens are those that were not in the prefix cache."""
    cached = 0 if usage is None else usage["prompt_tokens_details"]["cached_tokens"]
    return {
        "input_tokens": 0 if usage is None else usage["prompt_tokens"] - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": 0 if usage is None else usage["completion_tokens"],
    }
