"""Response models of Anthropic's Messages API, for OpenAPI and tests; the operations themselves build plain dicts."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from handlers.schemas.responses import LazyModel

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]


class OutputBlock(LazyModel):
    """A text, reasoning, or a use of a tool."""

    type: Literal["text", "thinking", "tool_use"]
    text: str | None = None
    thinking: str | None = None
    signature: str | None = Field(None, description="Always empty; of thinking only.")
    id: str | None = None
    name: str | None = Field(None, description="Name of the tool.")
    input: dict[str, Any] | None = Field(None, description="Input of the tool; empty if the call was cut off.")


class MessageUsage(LazyModel):
    """Counts of tokens; all input tokens are the first three together."""

    input_tokens: int = Field(description="Number of input tokens that were not in the prefix cache.")
    cache_creation_input_tokens: int
    cache_read_input_tokens: int = Field(description="Number of input tokens found in the prefix cache.")
    output_tokens: int
    service_tier: Literal["standard"] | None = None


class MessageResponse(LazyModel):
    """Anthropic's message."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[OutputBlock]
    stop_reason: StopReason | None = Field(description="null in the first event of a stream.")
    stop_sequence: str | None = Field(description="The stop sequence that ended the text.")
    usage: MessageUsage


class BlockDelta(LazyModel):
    """What an event adds: to a block, or to the message at its end."""

    type: Literal["text_delta", "thinking_delta", "signature_delta", "input_json_delta"] | None = None
    text: str | None = None
    thinking: str | None = None
    signature: str | None = Field(None, description="Always empty; at the end of thinking.")
    partial_json: str | None = Field(None, description="Part of the JSON text of a tool's input.")
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None


class MessageEvent(LazyModel):
    """One event of a message's stream; its type says which members it has."""

    type: Literal[
        "message_start",
        "ping",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    message: MessageResponse | None = None
    index: int | None = Field(None, description="Index of the block.")
    content_block: OutputBlock | None = None
    delta: BlockDelta | None = None
    usage: MessageUsage | None = None


class TokenCount(LazyModel):
    """The number of tokens of a conversation."""

    input_tokens: int
