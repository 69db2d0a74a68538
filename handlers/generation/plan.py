"""What the generating operations share: from a validated request to jobs, from tokens to texts and usage."""

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
    """A request made ready: nothing can be wrong with it any more."""

    engine: Engine
    jobs: tuple[Job, ...]

    @property
    def prompt_tokens(self) -> int:
        """Of all prompts together."""
        return sum(len(job.token_ids) for job in self.jobs)

    @property
    def sequences(self) -> int:
        """How many there will be."""
        return sum(job.params.n for job in self.jobs)

    @property
    def most_tokens(self) -> int:
        """What it can cost: prompts and new tokens."""
        return self.prompt_tokens + sum(job.params.n * job.params.max_new_tokens for job in self.jobs)


async def paid(plan: PreparedRequest, ctx: Context) -> AsyncGenerator[Token, None]:
    """Have the caller charged for a plan, and start it. The stream must be closed: then the bill is settled.

    A prompt costs its tokens as soon as the engine is asked, and nothing if that fails before the first token.

    Raises:
        RateLimited, ExceedsRateLimit: see ``Context.charge``; nothing is started then.
    """
    stream = _billed(plan, ctx)
    await anext(stream)  # from here on closing it runs what stands behind its first yield
    return stream


async def _billed(plan: PreparedRequest, ctx: Context) -> AsyncGenerator[Token, None]:
    settle = await ctx.charge(plan.most_tokens)
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
        await settle(used + generated)


@asynccontextmanager
async def generating(
    plan: PreparedRequest, ctx: Context, cache: CacheUse | None = None
) -> AsyncIterator[tuple[Collected, AsyncIterator[Token]]]:
    """Start a plan. Leaving the block, however, stops the engine's work at once and reports the usage so far.

    Args:
        cache: what is reported of the response cache.

    Yields:
        An empty collection, and the tokens, each of which has been added to it when it comes out.
    """
    collected = Collected(plan.prompt_tokens, plan.sequences, cache)
    async with aclosing(await paid(plan, ctx)) as stream, collecting(collected, stream, ctx) as both:
        yield both
