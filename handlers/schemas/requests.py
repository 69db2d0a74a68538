"""Request models: every field with its type, range and one line of help.

Types are strict, save that numbers follow pydantic's lax mode (``"0.5"`` is a number). Unknown fields are refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError


def _encodable(value: str) -> str:
    # pydantic looks into a text only where it has a length to check; elsewhere half a surrogate pair would pass, and
    # no tokenizer takes it.
    try:
        value.encode()
    except UnicodeEncodeError:
        raise PydanticCustomError("lone_surrogate", "half of a surrogate pair is no text") from None
    return value


_Text = Annotated[str, Field(min_length=1)]


_AnyText = Annotated[str, AfterValidator(_encodable)]


def _listed(value: object) -> object:
    if not isinstance(value, str | list):
        raise PydanticCustomError("one_or_many", "input should be a text or a list of texts")
    return [value] if isinstance(value, str) else value


def _one_or_many(text: dict[str, Any], most: int) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [text, {"type": "array", "items": text, "minItems": 1, "maxItems": most}]})


Prompts = Annotated[
    list[_Text],
    BeforeValidator(_listed),
    Field(min_length=1, max_length=1024),
    _one_or_many({"type": "string", "minLength": 1}, 1024),
]


"""A text or a list of texts; a list once validated."""


Stops = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=256)]],
    BeforeValidator(_listed),
    Field(min_length=1, max_length=8),
    _one_or_many({"type": "string", "minLength": 1, "maxLength": 256}, 8),
]


"""A stop string or a list of them; a list once validated."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


class Empty(_Strict):
    """An operation that takes nothing."""


class ModelChoice(_Strict):
    """Which of the served models is meant."""

    model: _Text | None = Field(None, max_length=256, description="A served model's id; the default model if left out.")


class Sampling(ModelChoice):
    """How tokens are chosen. The defaults are the same for every operation."""

    temperature: float = Field(
        0.7, ge=0, le=2, strict=False, description="0 is greedy (always the most likely token); higher is more varied."
    )
    top_p: float = Field(
        0.9,
        gt=0,
        le=1,
        strict=False,
        description="Sample from the smallest set of tokens with this probability; 1 is all.",
    )
    top_k: int = Field(
        50, ge=0, le=1_000_000, strict=False, description="Sample from the k likeliest tokens; 0 is all."
    )
    repetition_penalty: float = Field(
        1.0, gt=0, le=10, strict=False, description="Above 1 makes tokens already seen less likely."
    )
    stop: Stops | None = Field(None, description="Strings that end the text; they are not part of it.")
    seed: int | None = Field(
        None,
        ge=-(2**63),
        le=2**63 - 1,
        strict=False,
        description="The same request with the same seed gives the same text.",
    )
    stream: bool = Field(False, description="Answer with server-sent events as tokens come (HTTP), or call stream().")


class _TextRequest(Sampling):
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
    num_return_sequences: int = Field(1, ge=1, le=1024, strict=False, description="Sequences per prompt.")


class GenerateRequest(_TextRequest):
    """Continue a prompt; the answer holds prompt and continuation."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"prompt": "Once upon a time", "max_new_tokens": 24, "temperature": 0}]}
    )


class CompleteRequest(_TextRequest):
    """Complete a prompt; the answer holds the continuation only."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"prompt": "The capital of France is", "max_new_tokens": 8, "temperature": 0}]}
    )

    echo: bool = Field(False, description="Put the prompt before the completion.")


class TextPart(_Strict):
    """A text part of a message, as OpenAI's clients may send it."""

    type: Literal["text"]
    text: _AnyText


def _content_kind(value: object) -> str | None:
    return "text" if isinstance(value, str) else "parts" if isinstance(value, list) else None


Content = Annotated[
    Annotated[_AnyText, Tag("text")] | Annotated[list[TextPart], Tag("parts")],
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


class ChatRequest(Sampling):
    """OpenAI's chat completion request, and top_k and repetition_penalty beside it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}
            ]
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
    n: int = Field(1, ge=1, le=1024, strict=False, description="Answers to give.")
    stream_options: StreamOptions | None = Field(None, description="Read only when stream is true.")
    user: str | None = Field(None, max_length=256, description="Accepted for compatibility; not used.")
