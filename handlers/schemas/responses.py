"""Response models of the generating operations, for OpenAPI and tests; the operations themselves build plain dicts."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class LazyModel(BaseModel):
    """Base class whose validator is built on first use: no request needs it, and building it slows the start."""

    model_config = ConfigDict(defer_build=True)


class PromptTokensDetails(LazyModel):
    """Details of the prompt's tokens."""

    cached_tokens: int = Field(description="Number of prompt tokens found in the prefix cache.")


class CompletionTokensDetails(LazyModel):
    """Details of the completion's tokens."""

    reasoning_tokens: int = Field(description="Number of tokens of reasoning, of all choices together.")


class CacheReport(LazyModel):
    """How the response cache was used. A cached response repeats the rest of its original usage."""

    status: Literal["hit", "miss", "shared", "bypass"] = Field(
        description="hit: the response was cached; miss: it was generated and cached; shared: an identical request was "
        "in progress; bypass: it was generated, and the cache was not used."
    )
    age_seconds: float | None = Field(description="Age of a cached response; null if it was generated.")
    key: str | None = Field(description="Key of the response in the cache; DELETE /cache accepts it as prefix.")


class Usage(LazyModel):
    """Counts of prompt and completion tokens, and the use of the response cache."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails | None = Field(None, description="Of chat completions only.")
    cache: CacheReport | None = Field(None, description="Present if the response cache is enabled (RESPONSE_CACHE).")


class Timings(LazyModel):
    """Times and rates, as llama.cpp's server has them; a rate is null where there is nothing to divide by."""

    cache_n: int = Field(description="Number of prompt tokens found in the prefix cache.")
    prompt_n: int = Field(description="Number of the other prompt tokens.")
    prompt_ms: float = Field(description="Milliseconds up to the first token, the time in the queue included.")
    prompt_per_token_ms: float | None
    prompt_per_second: float | None
    predicted_n: int = Field(description="Number of generated tokens.")
    predicted_ms: float = Field(description="Milliseconds since the first token.")
    predicted_per_token_ms: float | None
    predicted_per_second: float | None


class TopLogprob(LazyModel):
    """A token and its log-probability: OpenAI's fields, plus the token's id."""

    id: int = Field(description="Token id, as logit_bias takes it.")
    token: str = Field(description="Text of the token; an incomplete character is a replacement character.")
    logprob: float = Field(
        description="Natural logarithm of the model's probability, before penalties, biases, temperature and filters; "
        "-9999 stands for all lower values."
    )
    bytes: list[int] = Field(description="Bytes of the token in UTF-8; joined, those of all tokens are the text.")


class TokenLogprob(TopLogprob):
    """A generated token, its log-probability and the likeliest alternatives."""

    top_logprobs: list[TopLogprob] = Field(
        description="The most likely tokens at this position, most likely first; empty unless requested."
    )


class SequenceResponse(LazyModel):
    """One generated text."""

    index: int = Field(description="Prompt number x num_return_sequences + number within the prompt.")
    text: str
    finish_reason: Literal["stop", "length"]
    logprobs: list[TokenLogprob] | None = Field(
        None, description="For every generated token, end tokens included; null unless requested."
    )


class TextResponse(LazyModel):
    """The generated texts of a ``generate`` or ``complete`` request."""

    text: str = Field(description="The first sequence's text.")
    sequences: list[SequenceResponse]
    model: str
    usage: Usage


class TextChunk(LazyModel):
    """One event of a stream: a piece of one sequence's text; the last event has the model and the usage instead."""

    index: int | None = None
    text: str | None = None
    finish_reason: Literal["stop", "length"] | None = None
    logprobs: list[TokenLogprob] | None = Field(
        None, description="For the tokens since the last event; null unless requested."
    )
    model: str | None = None
    usage: Usage | None = None


_FINGERPRINT = "Identifies model, weights, chat template and kernels; it changes when answers may change."
_STOP_REASON = "The stop string, or the id of the stop token, that ended the text; null if none did."
_NEW_IDS = "Ids of all generated tokens, end tokens included; present with return_token_ids."
_PROMPT_IDS = "Ids of the prompt's tokens; present with return_token_ids."
_PROMPT_LOGPROBS = (
    "For each token of the prompt, the likeliest tokens and the actual one by token id; null for the first token."
)


class PromptLogprob(LazyModel):
    """A token's log-probability at a position of the prompt."""

    logprob: float
    rank: int | None = Field(description="1 for the likeliest; null for a token that is not among the likeliest.")
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]


class FunctionCallResponse(LazyModel):
    """A function that the model calls, and the arguments."""

    name: str
    arguments: str = Field(description="The arguments: a JSON object, as text.")


class ToolCallResponse(LazyModel):
    """A call of a tool."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCallResponse


class AnswerMessage(LazyModel):
    """The assistant's message."""

    role: Literal["assistant"] = "assistant"
    content: str | None = Field(description="null if the message has nothing but calls of tools.")
    reasoning_content: str | None = Field(None, description="Reasoning before the content; absent if there is none.")
    tool_calls: list[ToolCallResponse] | None = Field(None, description="Absent if there are none.")
    function_call: FunctionCallResponse | None = Field(
        None, description="The call, if the request has functions in place of tools."
    )


class ChatLogprobs(LazyModel):
    """Log-probabilities of every generated token, end tokens included; in a chunk, of those since the last chunk."""

    content: list[TokenLogprob]


class ChatChoice(LazyModel):
    """One choice of a chat completion."""

    index: int
    message: AnswerMessage
    finish_reason: Literal["stop", "length", "tool_calls", "function_call"] = Field(
        description="length also if a call of a tool is cut off, whose arguments are incomplete then."
    )
    stop_reason: str | int | None = Field(None, description=_STOP_REASON)
    logprobs: ChatLogprobs | None = None
    token_ids: list[int] | None = Field(None, description=_NEW_IDS)


class ChatResponse(LazyModel):
    """OpenAI's chat completion."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str | None = Field(None, description=_FINGERPRINT)
    service_tier: Literal["default"] | None = Field(None, description="Present if the request has it.")
    prompt_token_ids: list[int] | None = Field(None, description=_PROMPT_IDS)
    prompt_logprobs: PromptLogprobs | None = Field(None, description=_PROMPT_LOGPROBS)
    choices: list[ChatChoice]
    usage: Usage
    timings: Timings | None = Field(None, description="Present if requested.")


class FunctionCallDelta(LazyModel):
    """The part of a function's call that a chunk adds."""

    name: str | None = None
    arguments: str


class ToolCallDelta(LazyModel):
    """The part of a tool's call that a chunk adds; the first one has id, type and name, and no arguments."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionCallDelta


class Delta(LazyModel):
    """The part of a message that a chunk adds."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None
    function_call: FunctionCallDelta | None = None


class ChunkChoice(LazyModel):
    """One choice of a chat completion chunk."""

    index: int
    delta: Delta
    finish_reason: Literal["stop", "length", "tool_calls", "function_call"] | None = None
    stop_reason: str | int | None = Field(None, description=_STOP_REASON)
    logprobs: ChatLogprobs | None = None
    token_ids: list[int] | None = Field(None, description=_NEW_IDS)


class ChatChunk(LazyModel):
    """OpenAI's chat completion chunk."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str | None = Field(None, description=_FINGERPRINT)
    service_tier: Literal["default"] | None = Field(None, description="Present if the request has it.")
    prompt_token_ids: list[int] | None = Field(None, description=_PROMPT_IDS + " In a stream, in the first chunk only.")
    choices: list[ChunkChoice]
    usage: Usage | None = None
    timings: Timings | None = Field(None, description="Present if requested.")


class CompletionLogprobs(LazyModel):
    """Log-probabilities in the form of OpenAI's completions: four lists with one item per token."""

    tokens: list[str] = Field(description=r"An incomplete character is written as its bytes: `bytes:\xe2\x82`.")
    token_logprobs: list[float | None] = Field(description="null for the first token of a prompt.")
    top_logprobs: list[dict[str, float] | None] = Field(
        description="The most likely tokens and the actual one. Of two with one text, one is `token_id:` and its id."
    )
    text_offset: list[int] = Field(description="Offset of each token in the choice's text, in characters.")


class CompletionsChoice(LazyModel):
    """One completion, or a piece of it."""

    index: int = Field(description="Prompt number x n + number within the prompt.")
    text: str
    finish_reason: Literal["stop", "length"] | None = None
    stop_reason: str | int | None = Field(None, description=_STOP_REASON)
    logprobs: CompletionLogprobs | None = None
    prompt_token_ids: list[int] | None = Field(None, description=_PROMPT_IDS + " In a stream, in the first piece only.")
    prompt_logprobs: PromptLogprobs | None = Field(None, description=_PROMPT_LOGPROBS)
    token_ids: list[int] | None = Field(None, description=_NEW_IDS)


class CompletionsResponse(LazyModel):
    """OpenAI's completion; each chunk of a stream has this form, too, and the last one has the usage if asked for."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str | None = Field(None, description=_FINGERPRINT)
    choices: list[CompletionsChoice]
    usage: Usage | None = None
    timings: Timings | None = Field(None, description="Present if requested.")


class VariantError(LazyModel):
    """The error of a variant that failed."""

    code: str
    message: str


class ComparedAnswer(LazyModel):
    """One variant's answer, or its error. Times start with the generation and do not include loading the model."""

    index: int = Field(description="Index of the variant.")
    label: str
    model: str
    text: str
    finish_reason: Literal["stop", "length"] | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    seconds: float | None = Field(None, description="Duration of the generation; variants run at the same time.")
    time_to_first_token_seconds: float | None = None
    tokens_per_second: float | None = Field(None, description="completion_tokens / seconds.")
    memory_bytes: int | None = Field(None, description="Memory that the model used at the end.")
    mean_logprobs: dict[str, float | None] = Field(
        description="Map of each model of the comparison to the mean log-probability of the answer's tokens after that "
        "model's own prompt, without the end token. Another model's tokens are its own for the same text. null if it "
        "could not be computed: no answer, no space in the context, or no model."
    )
    error: VariantError | None = None


class CompareResponse(LazyModel):
    """The answers of all variants."""

    object: Literal["comparison"] = "comparison"
    answers: list[ComparedAnswer] = Field(description="In the order of the variants.")


class CompareChunk(LazyModel):
    """One event: a piece of a variant's text, a variant's answer before scoring, or last the whole comparison."""

    index: int | None = None
    text: str | None = None
    finish_reason: Literal["stop", "length"] | None = None
    answer: ComparedAnswer | None = None
    object: Literal["comparison"] | None = None
    answers: list[ComparedAnswer] | None = None
