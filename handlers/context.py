"""The dependencies of an operation besides its payload: a frozen dataclass that tests and adapters can fill."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from handlers.batch_protocols import Batches, Files
from handlers.protocols import Cache, Models, ResponseStore, Tracing
from runtime.status import EngineStats, Memory
from runtime.types import TokenUsage


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """Limits of one request, from the settings: characters of its prompts, and sequences to generate."""

    max_prompt_chars: int = 200_000
    max_sequences: int = 2048


@dataclass(frozen=True, slots=True)
class Clock:
    """Wall clock and monotonic clock in seconds; tests replace them."""

    time: Callable[[], float]
    monotonic: Callable[[], float]


Commit = Callable[[int], Awaitable[None]]
"""Commits the number of tokens that a generation used, in place of the tokens reserved for it."""


async def reserve_unlimited(max_tokens: int) -> Commit:
    """Accept any number of tokens: the default of ``Context.reserve``, for callers without a limit."""

    async def commit(used: int) -> None:
        pass

    return commit


@dataclass(frozen=True, slots=True)
class Context:
    """The dependencies that an operation receives beside its payload.

    Args:
        models: the model registry.
        cache: the response cache; None for no cache.
        responses: keeps responses of the Responses API; None to keep none.
        files: the stored files; None if the service keeps none.
        batches: the batches; None if the service has none.
        model_stats: returns the statistics of the model with the given id.
        memory: returns the memory of the process and its limits, in bytes.
        caller: returns an identifier of the request's caller; "" if there is only one.
        may_call: returns whether the request's caller may call an operation.
        clock: wall clock and monotonic clock.
        new_id: returns a short unique id for a response.
        background: whether this is background work, which yields to interactive requests, see ``Job.background``.
        limits: limits of one request.
        reasoning: whether reasoning is separated from the content of answers.
        version: the service's version.
        started: monotonic time at which the service started.
        tracing: traces requests, see ``handlers.dispatch.lookup``; None for no tracing.
        observe: called with each generation's usage when it ends, also if it is cut short; and before the first token
            with the use of the response cache and no tokens.
        reserve: reserves the greatest number of tokens that a generation can use, prompts and new tokens, before it
            starts; raises RateLimited or ExceedsRateLimit if the caller has fewer left. Returns a function that commits
            the number of tokens really used and is called once. ``handlers.generation.prepared_request.start_charged``
            calls both.
        has_token_limit: whether the caller's tokens are limited, so that ``reserve`` may refuse a request.
    """

    models: Models
    clock: Clock
    new_id: Callable[[], str]
    cache: Cache | None = None
    responses: ResponseStore | None = None
    files: Files | None = None
    batches: Batches | None = None
    model_stats: Callable[[str], EngineStats] = lambda model: EngineStats()
    memory: Callable[[], Memory] = Memory
    caller: Callable[[], str] = lambda: ""
    may_call: Callable[[str], bool] = lambda operation: True
    background: bool = False
    limits: RequestLimits = field(default_factory=RequestLimits)
    reasoning: bool = True
    version: str = "0"
    started: float = 0.0
    tracing: Tracing | None = None
    observe: Callable[[TokenUsage], None] = lambda usage: None
    reserve: Callable[[int], Awaitable[Commit]] = reserve_unlimited
    has_token_limit: Callable[[], bool] = lambda: False
