"""Single flight: one computation whose tokens several requests read; it is cancelled when its last reader leaves."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

from runtime.errors import Draining
from runtime.types import Token

Start = Callable[[], AbstractAsyncContextManager[tuple[int, AsyncIterator[Token]]]]
"""Prepares a request and starts its generation; yields the number of prompt tokens and the stream of tokens, and stops
the generation when the block is left."""


class SingleFlight:
    """Runs one generation on a task and gives all its tokens to every reader. It belongs to one event loop.

    Args:
        model: the id of the model that generates.
        held: the model's lease; it is released only after the last reader has left.
        start: starts the generation; it is called on the flight's own task.
        land: called once at the end, before the readers learn of it; also after an error and after a cancellation.
        background: whether the generation is background work, see ``Job``.
    """

    def __init__(
        self,
        model: str,
        held: AsyncExitStack,
        start: Start,
        land: Callable[[SingleFlight], Awaitable[None]],
        *,
        background: bool = False,
    ) -> None:
        self.model = model
        self.background = background
        self.tokens: list[Token] = []
        self.seconds = 0.0
        self.complete = False
        self.keep = True
        self._start = start
        self._land = land
        self._prompt_tokens: int | None = None
        self._error: Exception | None = None
        self._over = False
        self._news = asyncio.Event()
        self._left = asyncio.Event()
        self._readers = 0
        # The task's first step runs before its creator can be cancelled: an event loop runs callbacks in order.
        self._task = asyncio.create_task(self._fly(held))

    @property
    def open(self) -> bool:
        """Whether another reader may join: True until the last reader has left."""
        return not self._left.is_set()

    @asynccontextmanager
    async def joined(self) -> AsyncIterator[None]:
        """Count the caller as a reader inside the block.

        When the last reader leaves, the generation is cancelled, and this waits until the engine is free.
        """
        self._readers += 1
        try:
            yield
        finally:
            self._readers -= 1
            if not self._readers:
                self._left.set()
                if not self._over:
                    self._task.cancel()
                await asyncio.wait({self._task})

    async def prompt_tokens(self) -> int:
        """Wait for the number of tokens of all prompts, and return it.

        Raises:
            ServiceError: the generation failed before that.
        """
        while self._prompt_tokens is None:
            await self._more()
        return self._prompt_tokens

    async def read(self) -> AsyncGenerator[Token, None]:
        """Yield all tokens from the first one on.

        Raises:
            ServiceError: the generation failed.
        """
        for place in itertools.count():
            while place == len(self.tokens):
                if self._over and self._error is None:
                    return
                await self._more()
            yield self.tokens[place]

    async def _more(self) -> None:
        if self._error is not None:
            raise self._error
        await self._news.wait()

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def _fly(self, held: AsyncExitStack) -> None:
        async with held:
            try:
                await self._compute()
            except Exception as error:  # the readers raise it
                self._error = error
            except asyncio.CancelledError:  # no reader is left, or the event loop is closing
                self._error = Draining("the service is shutting down", retry_after=1)
                raise
            finally:
                try:
                    await self._land(self)
                finally:
                    self._over = True
                    self._tell()
            await self._left.wait()

    async def _compute(self) -> None:
        began = time.perf_counter()
        async with self._start() as (self._prompt_tokens, tokens):
            self._tell()
            async for token in tokens:
                self.tokens.append(token)
                self._tell()
        self.seconds = time.perf_counter() - began
        self.complete = True
