"""Response models of the reporting operations: health, models, response cache and statistics."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from handlers.schemas.responses import LazyModel
from runtime.encoder_types import EncoderTask, LogitActivation, Pooling, Similarity
from runtime.status import ModelState


class ModelHealth(LazyModel):
    """The state of one model in a health report."""

    id: str
    state: ModelState
    stage: str | None = Field(None, description="Current stage of the load.")
    progress: float | None = Field(None, description="Progress of that stage, from 0 to 1.")
    error: str | None = None


class HealthResponse(LazyModel):
    """The state of the service and its models."""

    status: Literal["ok", "loading", "idle", "failed", "draining"] = Field(
        description="ok: the default model is loaded; idle: it loads on the first request."
    )
    version: str
    uptime_seconds: float
    models: list[ModelHealth]


class EncoderDescription(LazyModel):
    """What a model computes from a text without generating."""

    tasks: list[EncoderTask] = Field(description="embed: vectors; classify: scores of classes; rerank: relevance.")
    width: int = Field(description="Dimensions of a vector; 0 if the model computes none.")
    max_tokens: int = Field(description="Maximum number of tokens of one input.")
    pooling: list[Pooling] = Field(description="How the vectors of the tokens become one.")
    similarity: Similarity = Field(description="How the model's vectors are compared.")
    normalized: bool = Field(description="Whether vectors have the length 1.")
    dimensions: list[int] = Field(description="The fewer dimensions to which a vector may be cut.")
    prompts: dict[str, str] = Field(description="Texts that are put before an input, by the name of its use.")
    default_prompt: str = Field(description="Name of the prompt that applies if a request names none.")
    labels: list[str] = Field(description="Names of the classes.")
    activation: LogitActivation = Field(description="What turns the logits of classes into scores.")


class ModelInfoResponse(LazyModel):
    """Metadata of a loaded model."""

    name: str
    revision: str | None = Field(description="Commit on the hub; null for a model that is not from a hub.")
    source: Literal["wheel", "hub", "folder", "gguf"]
    architecture: str
    parameters: int
    active_parameters: int | None = Field(
        description="Parameters with which a token is computed: all but those of the experts that are not chosen for "
        "it; null in the reference engine, which does not know."
    )
    dtype: str
    weight_types: list[str] = Field(description="Number types of the weights, those with the most bytes first.")
    device: str
    context_length: int = Field(description="Maximum number of tokens, prompt and completion together.")
    vocabulary_size: int
    chat_template: bool = Field(description="Whether the model has a chat template of its own.")
    capabilities: list[str]
    load_seconds: float
    warmup_seconds: float
    weights_bytes: int
    memory_bytes: int = Field(description="Memory in use: weights, and the keys and values written so far.")
    engine: str
    optimizations: list[str]
    kv_bytes: int = Field(description="Maximum memory of keys and values.")
    kv_dtype: str = Field(description="Number type of keys and values.")
    kv_tokens: int = Field(description="Maximum number of tokens in the KV cache; 0 for no limit.")
    sampling_defaults: dict[str, float] = Field(
        description="Values for sampling fields that a request of OpenAI's routes leaves out, with "
        "GENERATION_CONFIG=model; OpenAI's own defaults apply to the others."
    )
    fingerprint: str = Field(
        description="Identifies everything that determines the bits of an answer; it changes when answers may change."
    )
    encoder: EncoderDescription | None = Field(description="What the model computes from a text without generating.")
    generates: bool = Field(description="Whether the model generates text; false for one that is only an encoder.")


class ModelEntry(LazyModel):
    """One served model: its state, memory and statistics; the first four fields are OpenAI's."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "warmstart"
    root: str = Field(description="Id of the model; another one than id for an alias (MODEL_ALIASES).")
    max_model_len: int | None = Field(None, description="The model's context length; null if it is not loaded.")
    state: ModelState = Field(
        description="State of the model; draining: it is being unloaded while its last requests run."
    )
    default: bool
    pinned: bool = Field(description="Whether the model is never unloaded to free memory for others.")
    source: Literal["wheel", "hub", "folder", "gguf"]
    stage: str | None = Field(None, description="Current stage of the load.")
    progress: float | None = Field(None, description="Progress of that stage, from 0 to 1.")
    error: str | None = Field(None, description="Error of the last load, if it failed.")
    engine: str | None = Field(
        None,
        description="native (compiled kernels), torch, or reference: transformers' own generation, which serves models "
        "that the fast engine does not support, several times slower; null if the model is not loaded.",
    )
    tasks: list[Literal["generate", "embed", "classify", "rerank"]] | None = Field(
        None, description="What the model does; null if it is not loaded."
    )
    weight_types: list[str] | None = Field(
        description="Number types of the weights, those with the most bytes first; null if the model is not loaded."
    )
    memory_bytes: int = Field(description="Memory in use: weights, and the keys and values written so far.")
    reserved_bytes: int | None = Field(
        None, description="Memory reserved: weights and the maximum of keys and values; null if not yet known."
    )
    last_used: float | None = Field(None, description="Unix time at which a request last started or ended.")
    running: int = Field(description="Number of requests that use the model now.")
    requests: int = Field(description="Number of requests since the service started.")
    tokens_per_second: float = Field(description="Generated tokens per second, over the last ten seconds.")
    time_to_first_token_seconds: float | None = Field(None, description="Median over the last requests.")


class ModelsResponse(LazyModel):
    """The served models, the default first."""

    object: Literal["list"] = "list"
    data: list[ModelEntry]


class CacheStatsResponse(LazyModel):
    """Statistics of the response cache. The counts are those of this process since it started."""

    store: Literal["off", "memory", "sqlite", "redis"]
    entries: int
    bytes: int
    limit_bytes: int
    hits: int = Field(description="Requests answered from the store.")
    shared: int = Field(description="Requests that shared the response of an identical request in progress.")
    misses: int = Field(description="Requests whose response is cacheable but was not in the store.")
    bypassed: int = Field(
        description="Requests whose response is not cacheable, or that did not allow a cached response."
    )
    rate: float = Field(description="(hits + shared) / (hits + shared + misses).")
    evictions: int
    expired: int
    errors: int = Field(description="Failures of the store; the response was generated instead.")
    saved_tokens: int = Field(description="Tokens of cached responses, which were not generated again.")
    saved_seconds: float = Field(description="Time that generating those tokens took originally.")
    ttl_seconds: float


class ClearCacheResponse(LazyModel):
    """The number of cached responses removed."""

    removed: int


class PercentilesResponse(LazyModel):
    """The median and the 95th percentile."""

    p50: float
    p95: float


class MemoryStats(LazyModel):
    """Memory of the process and its models, in bytes."""

    process_bytes: int
    limit_bytes: int = Field(description="Memory limit of the container, or of the machine.")
    budget_bytes: int = Field(description="Memory budget of all loaded models together.")
    models_bytes: int = Field(description="Memory that loaded models use now.")


class RequestCountsResponse(LazyModel):
    """Counts of requests and tokens: current, or since the service started."""

    running: int
    waiting: int
    queued: int = Field(description="Waiting background requests (from events); interactive requests have priority.")
    finished: int
    failed: int
    cancelled: int
    rejected: int
    prompt_tokens: int
    cached_tokens: int = Field(description="Number of prompt tokens found in the prefix cache.")
    generated_tokens: int
    tokens_per_second: float = Field(description="Generated tokens per second, over the last ten seconds.")


class ModelStats(RequestCountsResponse):
    """Statistics of one model."""

    id: str
    state: ModelState
    default: bool
    memory_bytes: int
    kv_usage: float = Field(description="Share of the memory for keys and values that is in use, from 0 to 1.")
    time_to_first_token: PercentilesResponse | None = Field(description="In seconds, over the last requests.")
    inter_token_latency: PercentilesResponse | None = Field(
        description="In seconds, over the means of the last requests."
    )


class StatsResponse(LazyModel):
    """Statistics of the service, its models and its response cache."""

    time: float = Field(description="Unix time.")
    version: str
    uptime_seconds: float
    memory: MemoryStats
    total: RequestCountsResponse
    models: list[ModelStats]
    cache: CacheStatsResponse
