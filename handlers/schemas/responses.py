"""Response models: what operations answer. Handlers build plain dicts; these describe them and tests compare."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class _Response(BaseModel):
    # Built when first used: no request needs them, and a start has no time for them.
    model_config = ConfigDict(defer_build=True)


class PromptTokensDetails(_Response):
    """Where the prompt's tokens came from."""

    cached_tokens: int = Field(description="Of the prompt tokens, those that an earlier request had left computed.")


class CacheReport(_Response):
    """What the response cache had to do with an answer. A kept answer's usage is otherwise that of its first time."""

    status: Literal["hit", "miss", "shared", "bypass"] = Field(
        description="hit: it was kept; miss: it was computed, and is kept; shared: it was being computed for another; "
        "bypass: it was computed whatever was kept."
    )
    age_seconds: float | None = Field(description="Of a kept answer.")
    key: str | None = Field(description="What it is kept under; DELETE /cache takes it as prefix.")


class Usage(_Response):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    cache: CacheReport | None = Field(None, description="There if answers are kept (RESPONSE_CACHE).")


class TopLogprob(_Response):
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


class Sequence(_Response):
    """One generated text."""

    index: int = Field(description="Prompt number x num_return_sequences + number within the prompt.")
    text: str
    finish_reason: Literal["stop", "length"]
    logprobs: list[TokenLogprob] | None = Field(
        None, description="Of every generated token, those that end the text included; there if asked for."
    )


class TextResponse(_Response):
    """Generated texts."""

    text: str = Field(description="The first sequence's text.")
    sequences: list[Sequence]
    model: str
    usage: Usage


class TextChunk(_Response):
    """One event of a stream: a piece of one sequence's text; the last event carries the usage instead."""

    index: int | None = None
    text: str | None = None
    finish_reason: Literal["stop", "length"] | None = None
    logprobs: list[TokenLogprob] | None = Field(None, description="Of the tokens up to here; there if asked for.")
    model: str | None = None
    usage: Usage | None = None


class AnswerMessage(_Response):
    """The assistant's turn."""

    role: Literal["assistant"] = "assistant"
    content: str


class ChatLogprobs(_Response):
    """Of every generated token, those that end the answer included; in a chunk, of those up to there."""

    content: list[TokenLogprob]


class ChatChoice(_Response):
    """One answer."""

    index: int
    message: AnswerMessage
    finish_reason: Literal["stop", "length"]
    logprobs: ChatLogprobs | None = None


class ChatResponse(_Response):
    """OpenAI's chat completion."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class Delta(_Response):
    """What a chunk adds."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(_Response):
    """One answer's part of a chunk."""

    index: int
    delta: Delta
    finish_reason: Literal["stop", "length"] | None = None
    logprobs: ChatLogprobs | None = None


class ChatChunk(_Response):
    """OpenAI's chat completion chunk."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None


class ModelHealth(_Response):
    """One model in the health report."""

    id: str
    state: Literal["unloaded", "loading", "ready", "draining", "failed"]
    stage: str | None = Field(None, description="What a load is doing now.")
    progress: float | None = Field(None, description="How far that stage is, 0 to 1.")
    error: str | None = None


class HealthResponse(_Response):
    """The service's own view of itself."""

    status: Literal["ok", "loading", "idle", "failed", "draining"] = Field(
        description="ok: the default model answers; idle: it loads on the first call."
    )
    version: str
    uptime_seconds: float
    models: list[ModelHealth]


class ModelInfoResponse(_Response):
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
    memory_bytes: int = Field(description="What it holds now: weights, and keys and values written so far.")
    engine: str
    optimizations: list[str]
    kv_bytes: int = Field(description="What its keys and values may take up.")
    fingerprint: str = Field(description="Names all that decides the bits of an answer; another one, other answers.")


class ModelEntry(_Response):
    """One served model; the first four fields are OpenAI's."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "warmstart"
    state: Literal["unloaded", "loading", "ready", "draining", "failed"] = Field(
        description="draining: it is being unloaded, and requests still run on it."
    )
    default: bool
    pinned: bool = Field(description="Whether it stays loaded when others need the room.")
    source: Literal["wheel", "hub", "folder", "gguf"]
    stage: str | None = Field(None, description="What a load is doing now.")
    progress: float | None = Field(None, description="How far that stage is, 0 to 1.")
    error: str | None = Field(None, description="Why the last load failed.")
    memory_bytes: int = Field(description="What it holds now: weights, and keys and values written so far.")
    reserved_bytes: int | None = Field(
        None, description="What it may come to hold, keys and values in full, as far as that is known."
    )
    last_used: float | None = Field(None, description="Unix time at which a request last began or ended on it.")
    running: int = Field(description="Requests that hold it now.")
    requests: int = Field(description="Requests it has served since the service began.")
    tokens_per_second: float = Field(description="Generated over the last ten seconds.")
    time_to_first_token_seconds: float | None = Field(None, description="Median of the last requests.")


class ModelsResponse(_Response):
    """The served models, the default first."""

    object: Literal["list"] = "list"
    data: list[ModelEntry]


class CacheStatsResponse(_Response):
    """What the response cache holds and has done. Counts are this process's, since it began."""

    store: Literal["off", "memory", "sqlite", "redis"]
    entries: int
    bytes: int
    limit_bytes: int
    hits: int = Field(description="Requests answered from the store.")
    shared: int = Field(description="Requests that joined an identical one under way.")
    misses: int = Field(description="Requests that could have been answered from it and were computed.")
    bypassed: int = Field(description="Requests that may differ each time, or asked not to be answered from it.")
    rate: float = Field(description="(hits + shared) / (hits + shared + misses).")
    evictions: int
    expired: int
    errors: int = Field(description="Times the store failed, and the request was computed instead.")
    saved_tokens: int = Field(description="Generated tokens that did not have to be computed.")
    saved_seconds: float = Field(description="Time that computing them had taken the first time.")
    ttl_seconds: float


class ClearCacheResponse(_Response):
    """How many answers were dropped."""

    removed: int


class Spread(_Response):
    """The middle of many figures and nearly the worst of them."""

    p50: float
    p95: float


class MemoryStats(_Response):
    """Bytes of memory."""

    process_bytes: int
    limit_bytes: int = Field(description="What the container, or the machine, lets the process have.")
    budget_bytes: int = Field(description="What all loaded models may hold together.")
    models_bytes: int = Field(description="What they hold now.")


class Counts(_Response):
    """Requests and tokens, since the service began or now."""

    running: int
    waiting: int
    finished: int
    failed: int
    cancelled: int
    rejected: int
    prompt_tokens: int
    cached_tokens: int = Field(description="Of the prompt tokens, those found in the prefix cache.")
    generated_tokens: int
    tokens_per_second: float = Field(description="Generated over the last ten seconds.")


class ModelStats(Counts):
    """One model's figures."""

    id: str
    state: Literal["unloaded", "loading", "ready", "draining", "failed"]
    default: bool
    memory_bytes: int
    kv_usage: float = Field(description="Share of the memory for keys and values in use, 0 to 1.")
    time_to_first_token: Spread | None = Field(description="Seconds; of the last requests.")
    inter_token_latency: Spread | None = Field(description="Seconds; of the last requests' means.")


class StatsResponse(_Response):
    """What the service does now and has done."""

    time: float = Field(description="Unix time.")
    version: str
    uptime_seconds: float
    memory: MemoryStats
    total: Counts
    models: list[ModelStats]
    cache: CacheStatsResponse


class CompletionLogprobs(_Response):
    """Log-probabilities as OpenAI's completions give them: four lists of one length, a place per token."""

    tokens: list[str]
    token_logprobs: list[float | None] = Field(description="None for a prompt's first token, which follows nothing.")
    top_logprobs: list[dict[str, float] | None] = Field(description="The likeliest tokens, and the one that is there.")
    text_offset: list[int] = Field(description="Where each token begins in the choice's text, in characters.")


class CompletionsChoice(_Response):
    """One completion, or a piece of it."""

    index: int = Field(description="Prompt number x n + number within the prompt.")
    text: str
    finish_reason: Literal["stop", "length"] | None = None
    logprobs: CompletionLogprobs | None = None


class CompletionsResponse(_Response):
    """OpenAI's completion; in a stream, each chunk has this shape, and the usage comes last if asked for."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionsChoice]
    usage: Usage | None = None


class VariantError(_Response):
    """Why a variant has no answer."""

    code: str
    message: str


class ComparedAnswer(_Response):
    """One variant's answer, or its error. Times begin with the generation: loading the model is not in them."""

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


class CompareResponse(_Response):
    """Answers side by side."""

    object: Literal["comparison"] = "comparison"
    answers: list[ComparedAnswer] = Field(description="In the order of the variants.")


class CompareChunk(_Response):
    """One event: a piece of a variant's text, or a variant's answer before it is scored; last the whole comparison."""

    index: int | None = None
    text: str | None = None
    finish_reason: Literal["stop", "length"] | None = None
    answer: ComparedAnswer | None = None
    object: Literal["comparison"] | None = None
    answers: list[ComparedAnswer] | None = None
