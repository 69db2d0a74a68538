"""Request and response models: every field with its type, range and one line of help.

Types are strict, save that numbers follow pydantic's lax mode (``"0.5"`` is a number). Unknown fields are refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from runtime.errors import InvalidRequest


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


class Usage(BaseModel):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Sequence(BaseModel):
    """One generated text."""

    index: int = Field(description="Prompt number x num_return_sequences + number within the prompt.")
    text: str
    finish_reason: Literal["stop", "length"]


class TextResponse(BaseModel):
    """Generated texts."""

    text: str = Field(description="The first sequence's text.")
    sequences: list[Sequence]
    model: str
    usage: Usage


class TextChunk(BaseModel):
    """One event of a stream: a piece of one sequence's text; the last event carries the usage instead."""

    index: int | None = None
    text: str | None = None
    finish_reason: Literal["stop", "length"] | None = None
    model: str | None = None
    usage: Usage | None = None


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


class AnswerMessage(BaseModel):
    """The assistant's turn."""

    role: Literal["assistant"] = "assistant"
    content: str


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: AnswerMessage
    finish_reason: Literal["stop", "length"]
    logprobs: None = None


class ChatResponse(BaseModel):
    """OpenAI's chat completion."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class Delta(BaseModel):
    """What a chunk adds."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(BaseModel):
    """One answer's part of a chunk."""

    index: int
    delta: Delta
    finish_reason: Literal["stop", "length"] | None = None
    logprobs: None = None


class ChatChunk(BaseModel):
    """OpenAI's chat completion chunk."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None


class ModelHealth(BaseModel):
    """One model in the health report."""

    id: str
    state: Literal["unloaded", "loading", "ready", "failed"]
    stage: str | None = Field(None, description="What a load is doing now.")
    progress: float | None = Field(None, description="How far that stage is, 0 to 1.")
    error: str | None = None


class HealthResponse(BaseModel):
    """The service's own view of itself."""

    status: Literal["ok", "loading", "idle", "failed", "draining"] = Field(
        description="ok: the default model answers; idle: it loads on the first call."
    )
    version: str
    uptime_seconds: float
    models: list[ModelHealth]


class ModelInfoResponse(BaseModel):
    """What is known of a loaded model."""

    name: str
    revision: str | None = Field(description="The hub's commit, where it came from a hub.")
    source: Literal["wheel", "hub", "folder", "gguf"]
    architecture: str
    parameters: int
    dtype: str
    device: str
    context_length: int = Field(description="Most tokens of prompt and answer together.")
    vocabulary_size: int
    chat_template: bool = Field(description="Whether the model brings its own chat template.")
    capabilities: list[str]
    load_seconds: float
    warmup_seconds: float
    weights_bytes: int
    memory_bytes: int = Field(description="Memory in use now: the process's resident set on a CPU.")
    engine: str
    optimizations: list[str]


class ModelEntry(BaseModel):
    """One served model; the first four fields are OpenAI's."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "warmstart"
    state: Literal["unloaded", "loading", "ready", "failed"]
    default: bool
    source: Literal["wheel", "hub", "folder", "gguf"]


class ModelsResponse(BaseModel):
    """The served models, the default first."""

    object: Literal["list"] = "list"
    data: list[ModelEntry]


M = TypeVar("M", bound=BaseModel)

_MOST_FAULTS = 1000  # looked at; a megabyte of them would hold the event loop for longer than a token takes


def parse(model: type[M], payload: object) -> M:
    """Validate a payload.

    Raises:
        InvalidRequest: names the first field at fault in ``param``, and up to five in the message.
    """
    if not isinstance(payload, dict):
        raise InvalidRequest("the request must be a JSON object")
    try:
        return model.model_validate(payload)
    except ValidationError as error:
        if error.error_count() > _MOST_FAULTS:
            raise InvalidRequest(f"{error.error_count()} fields are wrong or unknown") from None
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        faults = [(_path(item["loc"]), _explain(item["type"], item["msg"])) for item in problems[:5]]
        raise InvalidRequest(
            "; ".join(f"{path}: {text}" if path else text for path, text in faults), param=faults[0][0] or None
        ) from None


def _path(location: tuple[int | str, ...]) -> str:
    # pydantic adds a union's branch to the path, behind messages.N.content; a caller knows fields and indexes only.
    if location[:1] == ("messages",) and location[2:3] == ("content",):
        location = location[:3] + location[4:]
    return ".".join(_printable(str(part)) or "''" for part in location)


def _explain(kind: str, message: str) -> str:
    if kind == "extra_forbidden":
        return "unknown field"
    if kind == "model_type":
        return "input should be an object"  # pydantic would name the class
    return _printable(message[:1].lower() + message[1:])


def _printable(text: str) -> str:
    """Safe in any encoding and any log: no lone surrogates, no control characters, not endless."""
    clean = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in clean[:200])
