"""What handlers need of the runtime, as Protocols that tests and other adapters can implement."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, AsyncExitStack
from typing import Any, Protocol

from runtime.types import CacheStats, CacheUse, Job, Message, ModelInfo, ModelStatus, Token


class Engine(Protocol):
    """A loaded model."""

    @property
    def info(self) -> ModelInfo:
        """What is known of the model."""
        ...

    @property
    def memory_bytes(self) -> int:
        """Memory the model holds now: its weights, and the keys and values written so far."""
        ...

    @property
    def chat_stops(self) -> tuple[str, ...]:
        """Strings that end an answer because the chat template gives the turn away with them."""
        ...

    async def encode(self, text: str, *, queued: bool = False) -> tuple[int, ...]:
        """Token ids of a raw prompt, off the event loop. Control tokens written in it count as such, and an empty one
        is the token that begins a text.

        Args:
            text: of the prompt.
            queued: see ``Job``; a queue that is full is told before a text is read.

        Raises:
            InvalidRequest: it is empty, and the model has no token to begin a text with.
        """
        ...

    async def encode_chat(self, messages: Sequence[Message], *, queued: bool = False) -> tuple[int, ...]:
        """Token ids of a chat up to where the assistant speaks; no message's text becomes a control token.

        Args:
            messages: of the chat.
            queued: see ``encode``.

        Raises:
            InvalidRequest: the model's template refuses the messages.
        """
        ...

    async def encode_plain(self, text: str, *, queued: bool = False) -> tuple[int, ...]:
        """Token ids of a text as the model would write it behind another: nothing in it becomes a control token, and
        none is added.

        Args:
            text: to continue another.
            queued: see ``encode``.

        Raises:
            InvalidRequest: it spells a control token in a way that cannot be told from one.
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
            InvalidRequest: the model has no token of one of the ids that a job names.
            TooManyRequests: the queue is full.
            DeadlineExceeded: it took longer than allowed.
            Draining: the service is shutting down.
        """
        ...


class Models(Protocol):
    """The models that this process serves."""

    def lease(self, name: str | None) -> AbstractAsyncContextManager[Engine]:
        """The engine of a model (None: the default one), loaded if need be, and not unloaded inside the block.

        Raises:
            ModelNotFound: no model of that name is served.
            ModelLoading: it is still loading after the allowed wait.
            ModelUnavailable: it cannot be loaded.
            ModelTooLarge: it does not fit the memory that models may hold.
            Draining: the service is shutting down.
        """
        ...

    def status(self) -> list[ModelStatus]:
        """Every model's state, the default first."""
        ...

    def find(self, name: str) -> ModelStatus:
        """One model's state.

        Raises:
            ModelNotFound: no model of that name is served.
        """
        ...

    def load(self, name: str) -> ModelStatus:
        """Start loading a model and do not wait; of no effect on one that is loading or loaded.

        Raises:
            ModelNotFound: no model of that name is served.
            Draining: the service is shutting down.
        """
        ...

    def watch(self, name: str) -> AsyncGenerator[ModelStatus, None]:
        """A model's status now and whenever it changes, until no load is under way.

        Raises:
            ModelNotFound: no model of that name is served.
        """
        ...

    async def unload(self, name: str) -> ModelStatus:
        """Unload a model once the requests that hold it have ended. New ones wait, and load it again.

        Returns:
            Its status when it is unloaded; or still ``draining``, if that takes longer than the allowed wait.

        Raises:
            ModelNotFound: no model of that name is served.
        """
        ...

    async def set_default(self, name: str) -> ModelStatus:
        """Load a model, and from then on answer with it those requests that name none. None of them fails of it.

        Raises:
            ModelNotFound: no model of that name is served.
            ModelLoading: it is still loading after the allowed wait; the default is the old one for now, unless the two
                do not fit the memory together: then requests wait for the new one already.
            ModelUnavailable: it cannot be loaded; the default stays as it was.
        """
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


class Cache(Protocol):
    """Answers kept, see ``runtime.response_cache.cache``."""

    @property
    def per_caller(self) -> bool:
        """Whether the keys of different callers must differ."""
        ...

    def answer(
        self,
        key: str,
        model: str,
        held: AsyncExitStack,
        start: Callable[[], Awaitable[tuple[int, AsyncGenerator[Token, None]]]],
        *,
        reuse: bool,
        max_age: float,
        queued: bool = False,
    ) -> AbstractAsyncContextManager[tuple[CacheUse, int, AsyncIterator[Token]]]:
        """An answer that is kept, or that is being computed for another, or else is computed now and kept.

        Leaving the block early does not disturb others who wait for the same; the last one stops the computation.

        Args:
            key: names all that decides the answer; hexadecimal digits.
            model: that gives it.
            held: the model's lease; taken over where the answer is computed, for as long as anybody reads it.
            start: begins to compute: prompt tokens, and the tokens. Called where that is needed only.
            reuse: whether an answer that is there already will do.
            max_age: of a kept answer, in seconds.
            queued: see ``Job``. Work that is not is computed anew rather than wait for such that is.

        Yields:
            What was done, the prompt's tokens, and the tokens of the answer; the same whatever was done.

        Raises:
            ServiceError: whatever ``start`` and its tokens raise, for all who wait.
        """
        ...

    def bypass(self) -> None:
        """Count an answer that it has nothing to do with."""
        ...

    async def stats(self) -> CacheStats:
        """What it holds and has done."""
        ...

    async def clear(self, *, model: str | None = None, prefix: str | None = None) -> int:
        """Drop answers: all, or a model's, or those whose key begins so; if both are given, both must hold.

        Returns:
            How many there were.

        Raises:
            CacheUnavailable: the store cannot be reached.
        """
        ...


class Trace(Protocol):
    """One request's span, see ``runtime.telemetry.tracing``."""

    def active(self) -> AbstractContextManager[None]:
        """Generations that begin inside the block belong to this request."""
        ...

    def set(self, attributes: Mapping[str, Any]) -> None:
        """Add attributes; those that are None are left out."""
        ...

    def end(self, name: str, error: str | None = None, *, failed: bool = False) -> None:
        """End it, with a name, the code of what went wrong, and whether that is the service's fault."""
        ...


class Tracing(Protocol):
    """Spans of requests."""

    def request(self, operation: str) -> Trace:
        """Begin a request's span."""
        ...

    def close(self) -> None:
        """Send what is left; what comes later is dropped."""
        ...
