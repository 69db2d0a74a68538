"""Response models of the generating operations, for OpenAPI and tests; the operations themselves build plain dicts."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class LazyModel(BaseModel):
    """Base class whose validator is built on first use: no request needs it, and building it slows the start."""

    model_config = ConfigDict(defer_build=True)


class PromptTokensDetails(LazyModel):
    """Details of the prompt's tokens."""

    cached_tokens: int = Field(description="Of the prompt tokens, those that an earlier request had left computed.")


class CacheReport(LazyModel):
    """How the response cache was used. A cached response repeats the rest of its original usage."""

    status: Literal["hit", "miss", "shared", "bypass"] = Field(
        description="hit: it was kept; miss: it was computed, and is kept; shared: it was being computed for another; "
        "bypass: it was computed whatever was kept."
    )
    age_seconds: float | None = Field(description="Of a kept answer.")
    key: str | None = Field(description="What it is kept under; DELETE /cache takes it as prefix.")


class Usage(LazyModel):
    """Counts of prompt and completion tokens, and the use of the response cache."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    cache: CacheReport | None = Field(None, description="There if answers are kept (RESPONSE_CACHE).")


class TopLogprob(LazyModel):
    """A token and its log-probability: OpenAI's fields, plus the token's id."""

    id: int = Field(description="As logit_bias takes it.")
    token: str = Field(description="Its text; a part of a character shows as a replacement mark.")
    logprob: float = Field(
        description="Natural logarithm of its probability by the model alone, before penalties, biases, temperature "
        "and the rest; -9999 stands for anything less likely than that."
    )
    bytes: list[int] = Field(description="Its text in UTF-8; those of all tokens, joined, are whole characters.")


class TokenLogprob(TopLogprob):
    """A generated token, its log-probability and the likeliest alternatives."""

    top_logprobs: list[TopLogprob] = Field(description="The likeliest tokens in its place, best first, if asked for.")


class SequenceResponse(LazyModel):
    """One generated text."""

    index: int = Field(description="Prompt number x num_return_sequences + number within the prompt.")
    text: str
    finish_reason: Literal["stop", "length"]
    logprobs: list[TokenLogprob] | None = Field(
        None, description="Of every generated token, those that end the text included; there if asked for."
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
    logprobs: list[TokenLogprob] | None = Field(None, description="Of the tokens up to here; there if asked for.")
    model: str | None = None
    usage: Usage | None = None


class AnswerMessage(LazyModel):
    """The assistant's message."""

    role: Literal["assistant"] = "assistant"
    content: str


class ChatLogprobs(LazyModel):
    """Log-probabilities of every generated token, end tokens included; in a chunk, of those since the last chunk."""

    content: list[TokenLogprob]


class ChatChoice(LazyModel):
    """One choice of a chat completion."""

    index: int
    message: AnswerMessage
    finish_reason: Literal["stop", "length"]
    logprobs: ChatLogprobs | None = None


class ChatResponse(LazyModel):
    """OpenAI's chat completion."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class Delta(LazyModel):
    """The part of a message that a chunk adds."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(LazyModel):
    """One choice of a chat completion chunk."""

    index: int
    delta: Delta
    finish_reason: Literal["stop", "length"] | None = None
    logprobs: ChatLogprobs | None = None


class ChatChunk(LazyModel):
    """OpenAI's chat completion chunk."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None


class CompletionLogprobs(LazyModel):
    """Log-probabilities in the form of OpenAI's completions: four lists with one item per token."""

    tokens: list[str] = Field(description=r"One that is not whole characters is its bytes, as `bytes:\xe2\x82`.")
    token_logprobs: list[float | None] = Field(description="None for a prompt's first token, which follows nothing.")
    top_logprobs: list[dict[str, float] | None] = Field(
        description="The likeliest tokens and the one that is there; of two with one text, one is `token_id:` and an id"
    )
    text_offset: list[int] = Field(description="Where each token begins in the choice's text, in characters.")


class CompletionsChoice(LazyModel):
    """One completion, or a piece of it."""

    index: int = Field(description="Prompt number x n + number within the prompt.")
    text: str
    finish_reason: Literal["stop", "length"] | None = None
    logprobs: CompletionLogprobs | None = None


class CompletionsResponse(LazyModel):
    """OpenAI's completion; each chunk of a stream has this form, too, and the last one has the usage if asked for."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionsChoice]
    usage: Usage | None = None


class VariantError(LazyModel):
    """The error of a variant that failed."""

    code: str
    message: str


class ComparedAnswer(LazyModel):
    """One variant's answer, or its error. Times start with the generation and do not include loading the model."""

    index: int = Field(description="Of the variant.")
    label: str
    model: str
    text: str
    finish_reason: Literal["stop", "length"] | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    seconds: float | None = Field(None, description="The whole generation; variants run at the same time.")
    time_to_first_token_seconds: float | None = None
    tokens_per_second: float | None = Field(None, description="completion_tokens / seconds.")
    memory_bytes: int | None = Field(None, description="What its model held at the end.")
    mean_logprobs: dict[str, float | None] = Field(
        description="For each model of the comparison, the mean log-probability of the answer's tokens behind that "
        "model's own prompt; an end token is not one of them. Under another model the tokens are those that it has "
        "for the text. null where that cannot be had: no answer, no room, no model."
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
