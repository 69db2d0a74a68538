"""Response models of OpenAI's Responses API, for OpenAPI and tests; the operation itself builds plain dicts."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from handlers.schemas.responses import CacheReport, LazyModel, TokenLogprob

ItemStatus = Literal["in_progress", "completed", "incomplete"]


class OutputPart(LazyModel):
    """A text of a message, or of reasoning."""

    type: Literal["output_text", "reasoning_text"]
    text: str
    annotations: list[Any] | None = Field(None, description="Always empty; of an output_text only.")
    logprobs: list[TokenLogprob] | None = Field(None, description="Empty unless requested; of an output_text only.")


class OutputItem(LazyModel):
    """A message, reasoning, or a call of a function."""

    id: str
    type: Literal["message", "reasoning", "function_call"]
    status: ItemStatus
    role: Literal["assistant"] | None = None
    summary: list[Any] | None = Field(None, description="Always empty; of reasoning only.")
    content: list[OutputPart] | None = None
    call_id: str | None = None
    name: str | None = Field(None, description="Name of the function.")
    arguments: str | None = Field(None, description="Arguments of the call, as JSON text.")


class InputTokensDetails(LazyModel):
    """Details of the input's tokens."""

    cached_tokens: int = Field(description="Number of input tokens found in the prefix cache.")
    cache_write_tokens: int


class OutputTokensDetails(LazyModel):
    """Details of the output's tokens."""

    reasoning_tokens: int


class ResponseUsage(LazyModel):
    """Counts of input and output tokens, and the use of the response cache."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int
    cache: CacheReport | None = Field(None, description="Present if the response cache is enabled (RESPONSE_CACHE).")


class InputTokenCount(LazyModel):
    """The number of tokens of an input."""

    object: Literal["response.input_tokens"]
    input_tokens: int


class IncompleteDetails(LazyModel):
    """Why a response is incomplete."""

    reason: Literal["max_output_tokens"]


class ResponseFailure(LazyModel):
    """The error that ended a response."""

    code: Literal["server_error", "rate_limit_exceeded", "invalid_prompt"]
    message: str


class Response(LazyModel):
    """OpenAI's response: what was generated, and the request's fields as they apply."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    completed_at: int | None
    background: Literal[False]
    error: ResponseFailure | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: dict[str, str | None]
    safety_identifier: str | None
    service_tier: Literal["default"]
    store: bool = Field(description="Whether it is kept.")
    temperature: float | None
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float | None
    truncation: Literal["disabled"]
    usage: ResponseUsage | None = Field(description="null while the response is in progress.")
    user: str | None


class DeletedResponse(LazyModel):
    """A response that is no longer kept."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]


class ResponseEvent(LazyModel):
    """One event of a response's stream; its type says which members it has."""

    type: Literal[
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.reasoning_text.delta",
        "response.reasoning_text.done",
        "response.output_text.delta",
        "response.output_text.done",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
        "response.incomplete",
        "response.failed",
        "error",
    ]
    sequence_number: int = Field(description="Number of the event, from 0.")
    response: Response | None = None
    output_index: int | None = None
    item_id: str | None = None
    item: OutputItem | None = None
    content_index: int | None = None
    part: OutputPart | None = None
    delta: str | None = None
    text: str | None = None
    name: str | None = None
    arguments: str | None = None
    logprobs: list[TokenLogprob] | None = None
    code: str | None = Field(None, description="Code of an error.")
    message: str | None = Field(None, description="Message of an error.")
    param: str | None = Field(None, description="The field at fault.")
