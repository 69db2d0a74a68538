"""Request models: every field with its type, range and one line of help.

Types are strict, save that a number's own field follows pydantic's lax mode (``"0.5"`` is a number). Unknown fields are
refused.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from handlers.schemas.fields import (
    AnyText,
    LogitBias,
    MinP,
    Penalty,
    Prompts,
    RepetitionPenalty,
    Seed,
    Stops,
    Temperature,
    Text,
    TopK,
    TopP,
)


class _Strict(BaseModel):
    # Built when first used: a start has no time for all of them.
    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=(), defer_build=True
    )


class Empty(_Strict):
    """An operation that takes nothing."""


class ModelChoice(_Strict):
    """Which of the served models is meant."""

    model: Text | None = Field(None, max_length=256, description="A served model's id; the default model if left out.")


class ModelName(_Strict):
    """Which model is meant."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": "smollm2-135m-instruct"}]})

    model: Text = Field(max_length=256, description="A served model's id.")


class LoadRequest(ModelName):
    """Load a model, if it is not loaded."""

    stream: bool = Field(False, description="Tell of the load's progress with server-sent events until it is done.")


class ClearCacheRequest(_Strict):
    """Drop kept answers; all of them, unless a field says which."""

    model: Text | None = Field(None, max_length=256, description="Only answers of this model.")
    prefix: str | None = Field(
        None, pattern="^[0-9a-f]{1,64}$", description="Only answers whose key begins so (X-Cache-Key tells a key)."
    )


class Sampling(ModelChoice):
    """How tokens are chosen. The defaults are the same for every operation."""

    temperature: Temperature = Field(
        0.7, description="0 is greedy (always the most likely token); higher is more varied."
    )
    top_p: TopP = Field(0.9, description="Sample from the smallest set of tokens with this probability; 1 is all.")
    top_k: TopK = Field(50, description="Sample from the k likeliest tokens; 0 is all.")
    min_p: MinP = Field(0.0, description="Drop tokens less likely than this times the likeliest one; 0 is none.")
    repetition_penalty: RepetitionPenalty = Field(
        1.0, description="Above 1 makes tokens already seen, prompt included, less likely."
    )
    presence_penalty: Penalty = Field(0.0, description="Above 0 makes tokens already generated less likely.")
    frequency_penalty: Penalty = Field(0.0, description="The same, once for every time a token was generated.")
    logit_bias: LogitBias | None = Field(
        None, description="Token id to a number added to its logit: -100 all but bans a token, 100 all but forces it."
    )
    stop: Stops | None = Field(None, description="Strings that end the text; they are not part of it.")
    seed: Seed | None = Field(None, description="The same request with the same seed gives the same text.")
    stream: bool = Field(False, description="Answer with server-sent events as tokens come (HTTP), or call stream().")


class Cacheable(Sampling):
    """A request whose answer may be kept and given again."""

    cache_control: str | None = Field(
        None,
        max_length=8192,
        description="As HTTP's Cache-Control (RFC 9111 section 5.2.1), which fills it where it is left out. no-store: "
        "keep no answer and give no kept one; no-cache: compute it anew; max-age=SECONDS: give none that is older.",
    )


class _TextRequest(Cacheable):
    prompt: Prompts = Field(description="The text to continue, or a list of texts.")
    max_length: int = Field(
        100, ge=2, le=10_000_000, strict=False, description="Most tokens of prompt and new text together."
    )
    max_new_tokens: int | None = Field(
        None,
        ge=1,
        le=10_000_000,
        strict=False,
        description="Most new tokens. Replaces the default of max_length; if both are given, the tighter one holds.",
    )
    min_new_tokens: int = Field(
        0,
        ge=0,
        le=10_000_000,
        strict=False,
        description="Neither an end token nor a stop string ends a text before it has this many new tokens.",
    )
    num_return_sequences: int = Field(1, ge=1, le=1024, strict=False, description="Sequences per prompt.")
    logprobs: int | None = Field(
        None,
        ge=0,
        le=20,
        strict=False,
        description="Report each new token's log-probability, and those of this many likeliest tokens in its place.",
    )


class GenerateRequest(_TextRequest):
    """Continue a prompt; the answer holds prompt and continuation."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"prompt": "Once upon a time", "max_new_tokens": 24, "temperature": 0}]}
    )


class CompleteRequest(_TextRequest):
    """Complete a prompt; the answer holds the continuation only."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"prompt": "The capital of France is", "max_new_tokens": 8, "temperature": 0},
                {"prompt": "The capital of France is", "max_new_tokens": 1, "logprobs": 5, "temperature": 0},
            ]
        }
    )

    echo: bool = Field(False, description="Put the prompt before the completion.")


class TextPart(_Strict):
    """A text part of a message, as OpenAI's clients may send it."""

    type: Literal["text"]
    text: AnyText


def _content_kind(value: object) -> str | None:
    return "text" if isinstance(value, str) else "parts" if isinstance(value, list) else None


Content = Annotated[
    Annotated[AnyText, Tag("text")] | Annotated[list[TextPart], Tag("parts")],
    Discriminator(
        _content_kind,
        custom_error_type="text_or_parts",
        custom_error_message="input should be a text or a list of text parts",
    ),
]


"""What a turn says."""


class ChatMessage(_Strict):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant"] = Field(
        description="Who speaks; developer is OpenAI's newer word for system."
    )
    content: Content = Field(description="What is said.")
    name: str | None = Field(None, max_length=64, description="Accepted for compatibility; not shown to the model.")


class StreamOptions(_Strict):
    """OpenAI's options of a stream."""

    include_usage: bool = Field(False, description="End the stream with a chunk that carries the usage.")


class ChatRequest(Cacheable):
    """OpenAI's chat completion request, and top_k, min_p, repetition_penalty and min_tokens beside it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0},
                {
                    "messages": [{"role": "user", "content": "Name a colour."}],
                    "max_tokens": 16,
                    "presence_penalty": 0.5,
                    "logprobs": True,
                    "top_logprobs": 3,
                },
            ],
            # top_logprobs needs logprobs
            "if": {"required": ["top_logprobs"], "properties": {"top_logprobs": {"type": "integer"}}},
            "then": {"required": ["logprobs"], "properties": {"logprobs": {"const": True}}},
        }
    )

    messages: list[ChatMessage] = Field(min_length=1, max_length=1024, description="The chat so far.")
    max_tokens: int | None = Field(
        None,
        ge=1,
        le=10_000_000,
        strict=False,
        description="Most new tokens; 512 if neither this nor the next is given.",
    )
    max_completion_tokens: int | None = Field(
        None, ge=1, le=10_000_000, strict=False, description="OpenAI's newer name of max_tokens; the tighter one holds."
    )
    min_tokens: int = Field(
        0,
        ge=0,
        le=10_000_000,
        strict=False,
        description="Neither an end token nor a stop string ends an answer before it has this many tokens.",
    )
    n: int = Field(1, ge=1, le=1024, strict=False, description="Answers to give.")
    logprobs: bool | None = Field(False, description="Report each token's log-probability.")
    top_logprobs: int | None = Field(
        None,
        ge=0,
        le=20,
        strict=False,
        description="Report this many likeliest tokens in each token's place, too; needs logprobs.",
    )
    stream_options: StreamOptions | None = Field(None, description="Read only when stream is true.")
    user: str | None = Field(None, max_length=256, description="Accepted for compatibility; not used.")

    @field_validator("top_logprobs")
    @classmethod
    def _needs_logprobs(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("logprobs", True) is not True:
            raise PydanticCustomError("needs_logprobs", "needs logprobs to be true")
        return value


class CompletionsRequest(Cacheable):
    """OpenAI's completion request, and top_k, min_p, repetition_penalty and min_tokens beside it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"prompt": "The capital of France is", "max_tokens": 8, "temperature": 0},
                {"prompt": "The capital of France is Paris.", "max_tokens": 0, "echo": True, "logprobs": 1},
            ]
        }
    )

    prompt: Prompts = Field(description="The text to complete, or a list of texts.")
    max_tokens: int | None = Field(
        None,
        ge=0,
        le=10_000_000,
        strict=False,
        description="Most new tokens; 16 if left out. With 0, echo and logprobs tell how likely the prompt is.",
    )
    min_tokens: int = Field(
        0,
        ge=0,
        le=10_000_000,
        strict=False,
        description="Neither an end token nor a stop string ends a text before it has this many new tokens.",
    )
    n: int = Field(1, ge=1, le=1024, strict=False, description="Completions per prompt.")
    best_of: int | None = Field(
        None, ge=1, le=1, strict=False, description="Accepted for compatibility; only 1 is possible."
    )
    echo: bool | None = Field(False, description="Put the prompt before the completion; in logprobs, too.")
    logprobs: int | None = Field(
        None,
        ge=0,
        le=5,
        strict=False,
        description="Report each token's log-probability, and those of this many likeliest tokens in its place.",
    )
    suffix: None = Field(None, description="Accepted for compatibility; texts that go behind are not supported.")
    stream_options: StreamOptions | None = Field(None, description="Read only when stream is true.")
    user: str | None = Field(None, max_length=256, description="Accepted for compatibility; not used.")


class Variant(ModelChoice):
    """One side of a comparison: what differs from the request's own fields."""

    label: Text | None = Field(None, max_length=64, description="A name for people; the model's id if left out.")
    temperature: Temperature | None = Field(None, description="In place of the request's own; so are all of these.")
    top_p: TopP | None = Field(None, description="See the request's.")
    top_k: TopK | None = Field(None, description="See the request's.")
    min_p: MinP | None = Field(None, description="See the request's.")
    repetition_penalty: RepetitionPenalty | None = Field(None, description="See the request's.")
    presence_penalty: Penalty | None = Field(None, description="See the request's.")
    frequency_penalty: Penalty | None = Field(None, description="See the request's.")
    seed: Seed | None = Field(None, description="See the request's.")


class CompareRequest(Sampling):
    """Give one prompt or chat to several models, or to one with several settings, at the same time."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "messages": [{"role": "user", "content": "Name a colour."}],
                    "variants": [{"temperature": 0}, {"label": "wild", "temperature": 1.5, "seed": 1}],
                    "max_new_tokens": 16,
                },
                {"prompt": "Once upon a time", "variants": [{"seed": 1}, {"seed": 2}], "score": False},
            ],
            "oneOf": [
                {
                    "required": ["prompt"],
                    "properties": {"prompt": {"type": "string"}, "messages": {"type": "null"}},
                },
                {
                    "required": ["messages"],
                    "properties": {"messages": {"type": "array"}, "prompt": {"type": "null"}},
                },
            ],
        }
    )

    prompt: Text | None = Field(None, description="The text to continue; or give messages.")
    messages: list[ChatMessage] | None = Field(
        None, min_length=1, max_length=1024, validate_default=True, description="The chat so far; or give a prompt."
    )
    variants: list[Variant] = Field(min_length=1, max_length=8, description="The sides; each may differ in any field.")
    max_new_tokens: int = Field(128, ge=1, le=10_000_000, strict=False, description="Most new tokens of each answer.")
    score: bool = Field(True, description="Tell how likely each answer is to each of the models.")

    @field_validator("messages")
    @classmethod
    def _one_of_two(cls, value: list[ChatMessage] | None, info: ValidationInfo) -> list[ChatMessage] | None:
        if "prompt" in info.data and (value is None) == (info.data["prompt"] is None):
            raise PydanticCustomError("one_of_two", "give either a prompt or messages")
        return value
