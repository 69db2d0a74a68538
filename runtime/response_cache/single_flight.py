"""One computation that many callers wait for: each reads all of it, and it ends when the last one has gone."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager

from runtime.errors import Draining
from runtime.types import Token

Start = Callable[[], Awaitable[tuple[int, AsyncGenerator[Token, None]]]]
"""Makes a request ready and begins it: its prompt tokens, and the tokens of its answer."""


class SingleFlight:
    """Tokens as they come, for all who have joined. It belongs to one event loop.

    Args:
        model: that computes.
        held: what must not be let go of before the last reader has gone (the model's lease).
        start: begins the computation, on a task of its own.
        land: called once when it is over, before the readers know; also after an error, and when it is given up.
        queued: whether it is computed when nothing else is to be, see ``Job``.
    """

    def __init__(
        self,
        model: str,
        held: AsyncExitStack,
        start: Start,
        land: Callable[[SingleFlight], Awaitable[None]],
        *,
        queued: bool = False,
    ) -> None:
        self.model = model
        self.queued = queued
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
        # Its first step runs before whoever made it can be cancelled: a loop calls in the order it was asked to.
        self._task = asyncio.create_task(self._fly(held))

    @property
    def open(self) -> bool:
        """Whether it can be joined: not once its last reader has left."""
        return not self._left.is_set()

    @asynccontextmanager
    async def joined(self) -> AsyncIterator[None]:
        """Be one of its readers. The last one to leave ends it, and waits until the engine is free."""
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
        """Tokens of all prompts, once they are known.

        Raises:
            ServiceError: it failed before that.
        """
        while self._prompt_tokens is None:
            await self._more()
        return self._prompt_tokens

    async def read(self) -> AsyncGenerator[Token, None]:
        """All tokens from the first one on.

        Raises:
            ServiceError: it failed.
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
            except Exception as error:  # whatever it is, the readers raise it
                self._error = error
            except asyncio.CancelledError:  # nobody is left, or the loop ends
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
        self._prompt_tokens, stream = await self._start()
        self._tell()
        async with aclosing(stream):
            async for token in stream:
                self.tokens.append(token)
                self._tell()
        self.seconds = time.perf_counter() - began
        self.complete = True
