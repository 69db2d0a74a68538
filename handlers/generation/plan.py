"""Starts a prepared request on the engine and accounts for its tokens."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

from handlers.context import Context
from handlers.generation.collect import Collected, collecting
from handlers.protocols import Engine
from runtime.errors import ServiceError
from runtime.types import CacheUse, Job, Token


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """A request after tokenization and all checks: the model's engine and the jobs to run on it."""

    engine: Engine
    jobs: tuple[Job, ...]

    @property
    def prompt_tokens(self) -> int:
        """The number of tokens of all prompts together."""
        return sum(len(job.token_ids) for job in self.jobs)

    @property
    def sequences(self) -> int:
        """The number of sequences to generate."""
        return sum(job.params.n for job in self.jobs)

    @property
    def most_tokens(self) -> int:
        """The greatest number of tokens it can use: prompts and new tokens."""
        return self.prompt_tokens + sum(job.params.n * job.params.max_new_tokens for job in self.jobs)


async def paid(plan: PreparedRequest, ctx: Context) -> AsyncGenerator[Token, None]:
    """Reserve a plan's tokens for the caller and start it. The stream must be closed, which commits the tokens used.

    The prompt's tokens count as used once the engine is called, unless it fails before the first token.

    Raises:
        RateLimited, ExceedsRateLimit: see ``Context.reserve``; nothing is started then.
    """
    stream = _billed(plan, ctx)
    await anext(stream)  # past the first yield, so that closing the stream runs its finally block
    return stream


async def _billed(plan: PreparedRequest, ctx: Context) -> AsyncGenerator[Token, None]:
    commit = await ctx.reserve(plan.most_tokens)
    generated, used = 0, 0
    try:
        yield Token(0, 0, "")
        used = plan.prompt_tokens
        async with aclosing(plan.engine.stream(plan.jobs)) as stream:
            async for token in stream:
                generated += 1
                yield token
    except ServiceError:
        used = used if generated else 0
        raise
    finally:
        await commit(used + generated)


@asynccontextmanager
async def generating(
    plan: PreparedRequest, ctx: Context, cache: CacheUse | None = None
) -> AsyncIterator[tuple[Collected, AsyncIterator[Token]]]:
    """Start a plan. Leaving the block stops the generation at once and reports the usage so far.

    Args:
        plan: the prepared request.
        ctx: the operation's context.
        cache: the use of the response cache to report; None without a cache.

    Yields:
        An empty collection, and the tokens; each is added to the collection before it is yielded.
    """
    collected = Collected(plan.prompt_tokens, plan.sequences, cache)
    async with aclosing(await paid(plan, ctx)) as stream, collecting(collected, stream, ctx) as both:
        yield both
