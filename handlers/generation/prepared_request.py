"""A request that is ready to run, and its start on the engine with the caller's tokens reserved."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace

from handlers.context import Context
from handlers.generation.collect import Collected, collecting
from handlers.protocols import Engine
from runtime.errors import ServiceError
from runtime.types import CacheUse, Job, Token


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """A request after tokenization and all checks.

    Args:
        engine: the model's engine.
        jobs: the jobs to run on it.
        alike: whether the prompts begin alike; then the first job runs alone, so that the others find what they share
            with it in the prefix cache.
    """

    engine: Engine
    jobs: tuple[Job, ...]
    alike: bool = False

    @property
    def prompt_tokens(self) -> int:
        """The number of tokens of all prompts together."""
        return sum(len(job.token_ids) for job in self.jobs)

    @property
    def sequences(self) -> int:
        """The number of sequences to generate."""
        return sum(job.params.n for job in self.jobs)

    @property
    def max_tokens(self) -> int:
        """The greatest number of tokens it can use: prompts and new tokens."""
        return self.prompt_tokens + sum(job.params.n * job.params.max_new_tokens for job in self.jobs)

    def stream(self) -> AsyncGenerator[Token, None]:
        """Run the jobs and yield their tokens; errors as for ``Engine.stream``."""
        return self._in_turn() if self.alike and len(self.jobs) > 1 else self.engine.stream(self.jobs)

    async def _in_turn(self) -> AsyncGenerator[Token, None]:
        first, *others = self.jobs
        async with aclosing(self.engine.stream([first])) as tokens:
            async for token in tokens:
                yield token
        async with aclosing(self.engine.stream(others)) as tokens:
            async for token in tokens:
                yield replace(token, sequence=first.params.n + token.sequence)


@asynccontextmanager
async def start_charged(request: PreparedRequest, ctx: Context) -> AsyncIterator[AsyncIterator[Token]]:
    """Reserve the request's tokens, and yield its tokens; leaving the block stops the engine and commits what was used.

    The prompt's tokens count as used once the engine is called, unless it fails before the first token.

    Args:
        request: the prepared request; the engine is called when the first token is read.
        ctx: the operation's context.

    Raises:
        RateLimited, ExceedsRateLimit: see ``Context.reserve``; nothing is started then.
    """
    commit = await ctx.reserve(request.max_tokens)
    used = 0

    async def counted(stream: AsyncIterator[Token]) -> AsyncGenerator[Token, None]:
        nonlocal used
        used = request.prompt_tokens
        generated = False
        try:
            async for token in stream:
                generated = True
                used += 1
                yield token
        except ServiceError:
            if not generated:
                used = 0
            raise

    try:
        async with aclosing(request.stream()) as stream, aclosing(counted(stream)) as tokens:
            yield tokens
    finally:
        await commit(used)


@asynccontextmanager
async def generating(
    request: PreparedRequest, ctx: Context, cache: CacheUse | None = None
) -> AsyncIterator[tuple[Collected, AsyncIterator[Token]]]:
    """Start a request. Leaving the block stops the generation at once and reports the usage so far.

    Args:
        request: the prepared request.
        ctx: the operation's context.
        cache: the use of the response cache to report; None without a cache.

    Yields:
        An empty collection, and the tokens; each is added to the collection before it is yielded.
    """
    collected = Collected(request.prompt_tokens, request.sequences, cache)
    async with start_charged(request, ctx) as stream, collecting(collected, stream, ctx) as both:
        yield both
