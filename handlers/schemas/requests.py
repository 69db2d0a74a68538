"""Request models of the operations. Types are strict, except that texts may be numbers; unknown fields are refused."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from handlers.schemas.base import MessageLogprobs, ModelChoice, ModelName, Sampling
from handlers.schemas.fields import (
    AnyText,
    MinP,
    Penalty,
    Prompts,
    RepetitionPenalty,
    Seed,
    Temperature,
    Text,
    TopK,
    TopP,
)
from handlers.schemas.messages import ChatMessage
from handlers.schemas.openai import OpenAIRequest, not_streamed
from handlers.schemas.strict import Strict, needs
from handlers.schemas.structured import Structured
from handlers.schemas.template import TemplateFields
from handlers.schemas.tools import TOOLS_NEEDED, ToolFields
from handlers.schemas.unsupported import CHAT, COMPLETIONS


class LoadRequest(ModelName):
    """Load a model; has no effect if it is loaded or loading."""

    stream: bool = Field(False, description="Stream the progress of the load as server-sent events.")


class ClearCacheRequest(Strict):
    """Remove cached responses: all of them, or those that match every field given."""

    model: Text | None = Field(None, max_length=256, description="Remove only responses of this model.")
    prefix: str | None = Field(
        None, pattern="^[0-9a-f]{1,64}$", description="Remove only responses whose key (X-Cache-Key) starts with this."
    )


class _TextRequest(Structured):
    prompt: Prompts = Field(description="The text to continue, its token ids, or a list of either.")
    max_length: int = Field(
        100, ge=2, le=10_000_000, strict=False, description="Maximum number of tokens, prompt and new text together."
    )
    max_new_tokens: int | None = Field(
        None,
        ge=1,
        le=10_000_000,
        strict=False,
        description="Maximum number of new tokens; replaces the default of max_length. The lower of the two applies.",
    )
    min_new_tokens: int = Field(
        0,
        ge=0,
        le=10_000_000,
        strict=False,
        description="Minimum number of new tokens: end tokens and stop strings do not end a text before.",
    )
    num_return_sequences: int = Field(1, ge=1, le=1024, strict=False, description="Sequences per prompt.")
    logprobs: int | None = Field(
        None,
        ge=0,
        le=20,
        strict=False,
        description="Return the log-probability of each new token and of this many most likely alternatives.",
    )


class GenerateRequest(_TextRequest):
    """Continue a prompt; the response has the prompt and its continuation."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"prompt": "Once upon a time", "max_new_tokens": 24, "temperature": 0}],
        }
    )


class CompleteRequest(_TextRequest):
    """Complete a prompt; the response has the completion only, unless ``echo`` is true."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"prompt": "The capital of France is", "max_new_tokens": 8, "temperature": 0},
                {"prompt": "The capital of France is", "max_new_tokens": 1, "logprobs": 5, "temperature": 0},
                {"prompt": "The sky is", "guided_choice": ["blue", "grey"], "temperature": 0},
            ],
        }
    )

    echo: bool = Field(False, description="Return the prompt before the completion.")


class ChatRequest(MessageLogprobs, ToolFields, OpenAIRequest, TemplateFields):
    """OpenAI's chat completion request, plus top_k, min_p, repetition_penalty, min_tokens and cache_control."""

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
            "allOf": [
                needs("stream_options", "object", "stream"),
                needs("top_logprobs", "integer", "logprobs"),
                TOOLS_NEEDED,
            ],
        }
    )
    unsupported = CHAT

    messages: list[ChatMessage] = Field(min_length=1, max_length=1024, description="The messages of the chat so far.")
    max_tokens: int | None = Field(
        None,
        ge=1,
        le=10_000_000,
        strict=False,
        description="Maximum number of new tokens; if neither this nor max_completion_tokens is given, to the end of "
        "the context, or 512 for a caller whose tokens are limited.",
    )
    max_completion_tokens: int | None = Field(
        None,
        ge=1,
        le=10_000_000,
        strict=False,
        description="OpenAI's newer name of max_tokens; the lower limit applies.",
    )
    min_tokens: int = Field(
        0,
        ge=0,
        le=10_000_000,
        strict=False,
        description="Minimum number of new tokens: end tokens and stop strings do not end a message before.",
    )
    echo: bool = Field(
        False, description="Return the text of the last message before the answer, if it is the assistant's."
    )
    include_reasoning: bool = Field(
        True, description="Whether reasoning is returned; otherwise it is generated, but left out."
    )
    metadata: dict[str, str] | None = Field(
        None, max_length=16, description="Accepted for compatibility; neither used nor stored."
    )
    service_tier: Literal["auto", "default", "flex", "scale", "priority"] | None = Field(
        None, description="Accepted for compatibility: every request is served alike, as default."
    )
    safety_identifier: str | None = Field(None, max_length=256, description="Accepted for compatibility; not used.")
    prompt_cache_key: str | None = Field(
        None,
        max_length=256,
        description="Accepted for compatibility; not used: prefix caching is automatic.",
    )

    @property
    def new_token_limits(self) -> list[int]:
        """The request's limits on the number of new tokens, of which the lowest applies; none if it sets none."""
        given = (self.max_tokens, self.max_completion_tokens, self.n_predict)
        return [limit for limit in given if limit is not None and limit > 0]


# With other fields best_of may be more than 1 only if it is not less than n, which JSON Schema cannot express.
_RANKED: dict[str, Any] = {
    "if": {"anyOf": [{"required": ["n"]}, {"required": ["stream"]}]},
    "then": {"properties": {"best_of": {"enum": [1, None]}}},
}


class CompletionsRequest(OpenAIRequest):
    """OpenAI's completion request, plus top_k, min_p, repetition_penalty, min_tokens and cache_control."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"prompt": "The capital of France is", "max_tokens": 8, "temperature": 0},
                {"prompt": "The capital of France is Paris.", "max_tokens": 0, "echo": True, "logprobs": 1},
                {"prompt": [72, 19, 65], "max_tokens": 8, "temperature": 0},
            ],
            "allOf": [needs("stream_options", "object", "stream"), not_streamed("prompt_logprobs"), _RANKED],
        }
    )
    unsupported = COMPLETIONS

    prompt: Prompts = Field(description="The text to complete, its token ids, or a list of either.")
    max_tokens: int | None = Field(
        None,
        ge=0,
        le=10_000_000,
        strict=False,
        description="Maximum number of new tokens; 16 if left out. With 0, echo and logprobs the prompt is scored.",
    )
    min_tokens: int = Field(
        0,
        ge=0,
        le=10_000_000,
        strict=False,
        description="Minimum number of new tokens: end tokens and stop strings do not end a text before.",
    )
    echo: bool = Field(False, description="Return the prompt before the completion, in text and logprobs.")
    best_of: int | None = Field(
        None,
        ge=1,
        le=1024,
        strict=False,
        description="Generate as many completions of each prompt, and return the n with the highest mean "
        "log-probability per token. A number other than 1 is at least n, and n with stream.",
    )
    logprobs: int | None = Field(
        None,
        ge=0,
        le=20,
        strict=False,
        description="Return the log-probability of each token and of this many most likely alternatives.",
    )

    @field_validator("best_of")
    @classmethod
    def _enough(cls, value: int | None, info: ValidationInfo) -> int | None:
        n = info.data.get("n", 1)
        if value not in (None, 1) and value < n:
            raise PydanticCustomError("best_of", "should be 1 or at least n")
        if value is not None and value > n and info.data.get("stream") is True:
            raise PydanticCustomError("best_of", "should be 1 or equal to n in a stream, which cannot be ranked")
        return value

    @property
    def generated(self) -> int:
        """The number of completions to generate for each prompt."""
        return max(self.n, self.best_of or 1)


class Variant(ModelChoice):
    """One variant of a comparison: the fields that replace the request's own."""

    label: Text | None = Field(
        None, max_length=64, description="Name of the variant in the response; the model's id if left out."
    )
    temperature: Temperature | None = Field(None, description="Overrides the request's temperature.")
    top_p: TopP | None = Field(None, description="Overrides the request's top_p.")
    top_k: TopK | None = Field(None, description="Overrides the request's top_k.")
    min_p: MinP | None = Field(None, description="Overrides the request's min_p.")
    repetition_penalty: RepetitionPenalty | None = Field(
        None, description="Overrides the request's repetition_penalty."
    )
    presence_penalty: Penalty | None = Field(None, description="Overrides the request's presence_penalty.")
    frequency_penalty: Penalty | None = Field(None, description="Overrides the request's frequency_penalty.")
    seed: Seed | None = Field(None, description="Overrides the request's seed.")


class CompareRequest(Sampling):
    """Run one prompt or chat through several models or settings at the same time."""

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

    prompt: AnyText | None = Field(None, description="The text to continue; exclusive with messages.")
    messages: list[ChatMessage] | None = Field(
        None,
        min_length=1,
        max_length=1024,
        validate_default=True,
        description="The messages of the chat so far; exclusive with prompt.",
    )
    variants: list[Variant] = Field(
        min_length=1, max_length=8, description="Variants to compare; each may override any sampling field."
    )
    max_new_tokens: int = Field(
        128, ge=1, le=10_000_000, strict=False, description="Maximum number of new tokens of each answer."
    )
    score: bool = Field(True, description="Compute the mean log-probability of each answer under each of the models.")

    @field_validator("messages")
    @classmethod
    def _one_of_two(cls, value: list[ChatMessage] | None, info: ValidationInfo) -> list[ChatMessage] | None:
        if "prompt" in info.data and (value is None) == (info.data["prompt"] is None):
            raise PydanticCustomError("one_of_two", "give either a prompt or messages")
        return value
