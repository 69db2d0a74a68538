"""Response models of the reporting operations: health, models, response cache and statistics."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from handlers.schemas.responses import LazyModel
from runtime.status import ModelState


class ModelHealth(LazyModel):
    """The state of one model in a health report."""

    id: str
    state: ModelState
    stage: str | None = Field(None, description="What a load is doing now.")
    progress: float | None = Field(None, description="How far that stage is, 0 to 1.")
    error: str | None = None


class HealthResponse(LazyModel):
    """The state of the service and its models."""

    status: Literal["ok", "loading", "idle", "failed", "draining"] = Field(
        description="ok: the default model answers; idle: it loads on the first call."
    )
    version: str
    uptime_seconds: float
    models: list[ModelHealth]


class ModelInfoResponse(LazyModel):
    """Metadata of a loaded model."""

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


class ModelEntry(LazyModel):
    """One served model: its state, memory and statistics; the first four fields are OpenAI's."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "warmstart"
    state: ModelState = Field(description="draining: it is being unloaded, and requests still run on it.")
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
    limit_bytes: int = Field(description="What the container, or the machine, lets the process have.")
    budget_bytes: int = Field(description="What all loaded models may hold together.")
    models_bytes: int = Field(description="What they hold now.")


class RequestCountsResponse(LazyModel):
    """Counts of requests and tokens: current, or since the service started."""

    running: int
    waiting: int
    queued: int = Field(description="Requests that came as events and wait; those that somebody waits for go before.")
    finished: int
    failed: int
    cancelled: int
    rejected: int
    prompt_tokens: int
    cached_tokens: int = Field(description="Of the prompt tokens, those found in the prefix cache.")
    generated_tokens: int
    tokens_per_second: float = Field(description="Generated over the last ten seconds.")


class ModelStats(RequestCountsResponse):
    """Statistics of one model."""

    id: str
    state: ModelState
    default: bool
    memory_bytes: int
    kv_usage: float = Field(description="Share of the memory for keys and values in use, 0 to 1.")
    time_to_first_token: PercentilesResponse | None = Field(description="Seconds; of the last requests.")
    inter_token_latency: PercentilesResponse | None = Field(description="Seconds; of the last requests' means.")


class StatsResponse(LazyModel):
    """Statistics of the service, its models and its response cache."""

    time: float = Field(description="Unix time.")
    version: str
    uptime_seconds: float
    memory: MemoryStats
    total: RequestCountsResponse
    models: list[ModelStats]
    cache: CacheStatsResponse
