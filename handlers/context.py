"""What a handler may reach besides its payload: a frozen bundle of Protocols, which tests and adapters can fill."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from handlers.protocols import Cache, Models, Tracing
from runtime.types import Memory, ModelFigures


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """What one request may ask, from the settings."""

    max_prompt_chars: int = 200_000
    max_sequences: int = 2048


@dataclass(frozen=True, slots=True)
class Clock:
    """Time, so that tests can hold it."""

    time: Callable[[], float]
    monotonic: Callable[[], float]


Settle = Callable[[int], Awaitable[None]]


async def free(most: int) -> Settle:
    """Nobody is charged."""

    async def settle(used: int) -> None:
        pass

    return settle


@dataclass(frozen=True, slots=True)
class Context:
    """All that a handler gets beside its payload.

    Args:
        models: the registry.
        cache: answers kept; None keeps none.
        figures: what a model does and has done.
        memory: of the process and its container.
        caller: tells requests of different callers apart; "" where there is only one.
        clock: wall clock and monotonic clock.
        new_id: makes a short unique id for an answer.
        queued: whether nobody waits for the answer right now: others go before it.
        limits: bounds of one request.
        version: of the service.
        started: monotonic time at which the service started.
        tracing: traces requests, see ``handlers.dispatch.lookup``; None traces none.
        observe: told the usage of each generation when it ends, also of one cut short; and before its first token, what
            the response cache had to do with it.
        charge: told the most tokens that a generation may cost, prompts and new ones, before it starts; raises
            RateLimited or ExceedsRateLimit if that is more than the caller has left. It answers whom to tell, once, how
            many it did cost. ``handlers.generation.plan.paid`` does both.
    """

    models: Models
    clock: Clock
    new_id: Callable[[], str]
    cache: Cache | None = None
    figures: Callable[[str], ModelFigures] = lambda model: ModelFigures()
    memory: Callable[[], Memory] = Memory
    caller: Callable[[], str] = lambda: ""
    queued: bool = False
    limits: RequestLimits = field(default_factory=RequestLimits)
    version: str = "0"
    started: float = 0.0
    tracing: Tracing | None = None
    observe: Callable[[Mapping[str, Any]], None] = lambda usage: None
    charge: Callable[[int], Awaitable[Settle]] = free
