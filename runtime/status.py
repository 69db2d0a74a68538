"""Plain data types for the state and statistics of models, memory and the response cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from runtime.types import ModelInfo

ModelState = Literal["unloaded", "loading", "ready", "draining", "failed"]


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """State and counters of one served model.

    Args:
        id: the name that requests use.
        source: the kind of source: wheel, hub, folder or gguf.
        state: one of ``ModelState``.
        default: whether it serves requests that name no model.
        created: Unix time at which the model was registered.
        stage: the current stage of a load in progress, and ``progress`` its completed fraction (0 to 1), if known.
        error: why the last load failed.
        info: the model's metadata; None before it is loaded.
        pinned: whether it is exempt from eviction.
        memory_bytes: memory in use: weights, and keys and values written so far.
        reserved_bytes: memory reserved in the budget (weights and a full KV cache), if known.
        last_used: wall-clock time at which a request last began or ended on it.
        running: requests that use it now.
        loads: number of loads since the process began; ``load_failures`` counts those that failed.
        unloads: number of unloads, of which ``evictions`` freed memory for another model.
        aliases: further names that requests may use.
    """

    id: str
    source: str
    state: ModelState
    default: bool
    created: int
    stage: str | None = None
    progress: float | None = None
    error: str | None = None
    info: ModelInfo | None = None
    pinned: bool = False
    memory_bytes: int = 0
    reserved_bytes: int | None = None
    last_used: float | None = None
    running: int = 0
    loads: int = 0
    load_failures: int = 0
    unloads: int = 0
    evictions: int = 0
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Median and 95th percentile of a distribution."""

    p50: float
    p95: float


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Statistics of one model: current load, and counters since the process began.

    Args:
        running: requests in the batch.
        waiting: interactive requests that wait for admission to the batch.
        queued: background requests (see ``Job``) that wait for admission, including preempted ones.
        kv_usage: fraction of the KV cache that running requests hold, 0 to 1.
        finished: requests that completed.
        failed: requests that were admitted and ended with an error.
        cancelled: requests whose caller disconnected.
        rejected: requests that were not admitted.
        prompt_tokens: prompt tokens processed, of which ``cached_tokens`` were in the prefix cache.
        generated_tokens: tokens returned to callers.
        tokens_per_second: generation rate over the last ten seconds.
        time_to_first_token: seconds, over recent requests; None without a request in the last five minutes.
        inter_token_latency: seconds, over the means of recent requests; None likewise.
    """

    running: int = 0
    waiting: int = 0
    queued: int = 0
    kv_usage: float = 0.0
    finished: int = 0
    failed: int = 0
    cancelled: int = 0
    rejected: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    tokens_per_second: float = 0.0
    time_to_first_token: Percentiles | None = None
    inter_token_latency: Percentiles | None = None


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory in bytes: used by the process, allowed by its container, and budgeted for all models together."""

    process_bytes: int = 0
    limit_bytes: int = 0
    budget_bytes: int = 0


@dataclass(frozen=True, slots=True)
class CacheStats:
    """Statistics of the response cache. Counters cover this process since it began.

    Args:
        store: the kind of store: off, memory, sqlite or redis.
        entries: cached responses, ``bytes`` in total and ``limit_bytes`` at most.
        hits: requests answered from the store.
        shared: requests that joined an identical one in flight.
        misses: cacheable requests that were computed because the store had no response.
        bypassed: requests whose result may differ each time, or that asked to bypass the cache.
        evictions: responses dropped to stay within the size limit.
        expired: responses dropped because of their age.
        errors: store failures; the request was computed instead.
        saved_tokens: generated tokens that did not have to be computed.
        saved_seconds: time that the original computation of those tokens took.
        ttl_seconds: lifetime of a cached response.
    """

    store: str = "off"
    entries: int = 0
    bytes: int = 0
    limit_bytes: int = 0
    hits: int = 0
    shared: int = 0
    misses: int = 0
    bypassed: int = 0
    evictions: int = 0
    expired: int = 0
    errors: int = 0
    saved_tokens: int = 0
    saved_seconds: float = 0.0
    ttl_seconds: float = 0.0
