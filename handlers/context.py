"""What a handler may reach besides its payload: a frozen bundle of Protocols, which tests and adapters can fill."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from runtime.types import Job, Message, ModelInfo, ModelStatus, Token


class Engine(Protocol):
    """A loaded model."""

    @property
    def info(self) -> ModelInfo:
        """What is known of the model."""
        ...

    @property
    def memory_bytes(self) -> int:
        """Memory the process (or the device) uses now."""
        ...

    @property
    def chat_stops(self) -> tuple[str, ...]:
        """Strings that end an answer because the chat template gives the turn away with them."""
        ...

    async def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of a raw prompt, off the event loop. Control tokens written in it count as such."""
        ...

    async def encode_chat(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Token ids of a chat up to where the assistant speaks; no message's text becomes a control token.

        Raises:
            InvalidRequest: the model's template refuses the messages.
        """
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for in a text, UTF-8 when joined with its neighbours'; a control token's name.

        An id that the tokenizer does not know stands for none.
        """
        ...

    def stream(self, jobs: Sequence[Job]) -> AsyncGenerator[Token, None]:
        """Generate for all jobs at once; every item is exactly one token. Closing the generator cancels the work.

        Raises:
            TooManyRequests: the queue is full.
            DeadlineExceeded: it took longer than allowed.
            Draining: the service is shutting down.
        """
        ...


class Models(Protocol):
    """The models that this process serves."""

    async def engine(self, name: str | None) -> Engine:
        """The engine of a model (None: the default one), loaded if need be.

        Raises:
            ModelNotFound: no model of that name is served.
            ModelLoading: it is still loading after the allowed wait.
            ModelUnavailable: it cannot be loaded.
        """
        ...

    def status(self) -> list[ModelStatus]:
        """Every model's state, the default first."""
        ...

    @property
    def ready(self) -> bool:
        """Whether the default model is loaded, its worker beats, and the service is not draining."""
        ...

    @property
    def alive(self) -> bool:
        """False once the default model's worker is gone for good, so that only a new process helps."""
        ...

    @property
    def draining(self) -> bool:
        """Whether the service is shutting down."""
        ...


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask, from the settings."""

    max_prompt_chars: int = 200_000
    max_sequences: int = 16


@dataclass(frozen=True, slots=True)
class Clock:
    """Time, so that tests can hold it."""

    time: Callable[[], float]
    monotonic: Callable[[], float]


@dataclass(frozen=True, slots=True)
class Context:
    """All that a handler gets beside its payload.

    Args:
        models: the registry.
        clock: wall clock and monotonic clock.
        new_id: makes a short unique id for an answer.
        limits: bounds of one request.
        version: of the service.
        started: monotonic time at which the service started.
        observe: told the usage of each generation when it ends, also of one cut short.
    """

    models: Models
    clock: Clock
    new_id: Callable[[], str]
    limits: Limits = field(default_factory=Limits)
    version: str = "0"
    started: float = 0.0
    observe: Callable[[Mapping[str, Any]], None] = lambda usage: None
