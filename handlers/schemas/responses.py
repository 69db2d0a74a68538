"""Response models: what operations answer. Handlers build plain dicts; these describe them and tests compare."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field


class PromptTokensDetails(BaseModel):
    """Where the prompt's tokens came from."""

    cached_tokens: int = Field(description="Of the prompt tokens, those that an earlier request had left computed.")


class Usage(BaseModel):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class TopLogprob(BaseModel):
    """A token and how likely it was; OpenAI's fields, and the id."""

    id: int = Field(description="As logit_bias takes it.")
    token: str = Field(description="Its text; a part of a character shows as a replacement mark.")
    logprob: float = Field(
        description="Natural logarithm of its probability by the model alone, before penalties, biases, temperature "
        "and the rest; -9999 stands for anything less likely than that."
    )
    bytes: list[int] = Field(description="Its text in UTF-8; those of all tokens, joined, are whole characters.")


class TokenLogprob(TopLogprob):
    """A generated token."""

    top_logprobs: list[TopLogprob] = Field(description="The likeliest tokens in its place, best first, if asked for.")


class Sequence(BaseModel):
    """One generated text."""

    index: int = Field(description="Prompt number x num_return_sequences + number within the prompt.")
    text: str
    finish_reason: Literal["stop", "length"]
    logprobs: list[TokenLogprob] | None = Field(
        None, description="Of every generated token, those that end the text included; there if asked for."
    )


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
    logprobs: list[TokenLogprob] | None = Field(None, description="Of the tokens up to here; there if asked for.")
    model: str | None = None
    usage: Usage | None = None


class AnswerMessage(BaseModel):
    """The assistant's turn."""

    role: Literal["assistant"] = "assistant"
    content: str


class ChatLogprobs(BaseModel):
    """Of every generated token, those that end the answer included; in a chunk, of those up to there."""

    content: list[TokenLogprob]


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: AnswerMessage
    finish_reason: Literal["stop", "length"]
    logprobs: ChatLogprobs | None = None


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
    logprobs: ChatLogprobs | None = None


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
