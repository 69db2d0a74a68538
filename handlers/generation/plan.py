"""What the generating operations share: from a validated request to jobs, from tokens to texts and usage."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from handlers.context import Context, Engine
from handlers.schemas.requests import Sampling
from runtime.errors import ContextLengthExceeded, InvalidRequest, ServiceError
from runtime.types import CacheUse, FinishReason, Job, Message, SamplingParams, Token

_TEXTS_AT_ONCE = 16
_BURST = 16  # tokens that are handed out before other requests get their turn, in a few milliseconds


def check_prompt_chars(texts: Sequence[str], ctx: Context, field_name: str) -> None:
    """Refuse more text than the service reads.

    Raises:
        InvalidRequest: names the limit.
    """
    total = sum(len(text) for text in texts)
    if total > ctx.limits.max_prompt_chars:
        raise InvalidRequest(
            f"{field_name}: {total} characters are more than the {ctx.limits.max_prompt_chars} this service takes "
            "(MAX_PROMPT_CHARS)",
            param=field_name,
        )


def check_sequences(prompts: int, n: int, ctx: Context, n_field: str, prompts_field: str = "prompt") -> None:
    """Refuse more sequences than one request may ask for.

    Args:
        prompts: how many there are.
        n: sequences of each.
        n_field: where ``n`` is from; named where the prompts alone would not be too many.
        prompts_field: where the prompts are from.

    Raises:
        InvalidRequest: names the field and the limit.
    """
    most = ctx.limits.max_sequences
    if prompts > most:
        raise InvalidRequest(
            f"{prompts_field}: {prompts} are more than the {most} sequences one request may ask for (MAX_SEQUENCES)",
            param=prompts_field,
        )
    if prompts * n > most:
        raise InvalidRequest(
            f"{n_field}: {prompts} x {n} sequences are more than the {most} one request may ask for (MAX_SEQUENCES)",
            param=n_field,
        )


def room(prompt_tokens: int, context_length: int, field_name: str) -> int:
    """New tokens that fit behind a prompt.

    Raises:
        ContextLengthExceeded: none does.
    """
    if prompt_tokens >= context_length:
        raise ContextLengthExceeded.of(context_length, prompt_tokens, 1, field_name)
    return context_length - prompt_tokens


def check_least(least: int, most: int, field_name: str, bounds: str) -> None:
    """Refuse to promise more new tokens than there may be.

    Args:
        bounds: what bounds them, for the message.

    Raises:
        InvalidRequest: names both numbers.
    """
    if least > most:
        raise InvalidRequest(
            f"{field_name}: {least} is more than the {most} new tokens that {bounds} and the model's context allow",
            param=field_name,
        )


def sampling_params(
    request: Sampling,
    *,
    max_new_tokens: int,
    n: int,
    min_new_tokens: int = 0,
    logprobs: int | None = None,
    stop: Sequence[str] = (),
) -> SamplingParams:
    """The engine's parameters from a request's fields; ``stop`` is added to the request's own stop strings."""
    return SamplingParams(
        max_new_tokens=max_new_tokens,
        temperature=request.temperature if request.top_p else 0,  # top_p 0 leaves the likeliest token only
        top_k=request.top_k,
        top_p=request.top_p,
        min_p=request.min_p,
        repetition_penalty=request.repetition_penalty,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        logit_bias=tuple((request.logit_bias or {}).items()),
        min_new_tokens=min_new_tokens,
        logprobs=logprobs,
        stop=(*(request.stop or ()), *stop),
        seed=request.seed,
        n=n,
    )


async def encode_all(engine: Engine, texts: Sequence[str], ctx: Context) -> list[tuple[int, ...]]:
    """Token ids of each text. A few texts at a time, so that other requests' texts come between thousands of them."""
    ids: list[tuple[int, ...]] = []
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        some = texts[start : start + _TEXTS_AT_ONCE]
        ids += await asyncio.gather(*(engine.encode(text, queued=ctx.queued) for text in some))
    return ids


@dataclass(slots=True)
class Collected:
    """Tokens gathered into texts. Feed it every token of a stream.

    Args:
        prompt_tokens: of all prompts together.
        sequences: how many there will be.
        cache: what the response cache had to do with it; None without one.
    """

    prompt_tokens: int
    sequences: int
    cache: CacheUse | None = None
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasons: list[FinishReason] = field(default_factory=list)
    _pieces: list[list[str]] = field(default_factory=list)
    _unreported: list[list[Token]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reasons = ["length"] * self.sequences
        self._pieces = [[] for _ in range(self.sequences)]
        self._unreported = [[] for _ in range(self.sequences)]

    def add(self, token: Token) -> None:
        """Take one token."""
        self.completion_tokens += 1
        self.cached_tokens += token.cached_tokens
        if token.text:
            self._pieces[token.sequence].append(token.text)
        if token.logprob is not None:
            self._unreported[token.sequence].append(token)
        if token.finish_reason is not None:
            self.reasons[token.sequence] = token.finish_reason

    @property
    def texts(self) -> list[str]:
        """Each sequence's text so far."""
        return ["".join(pieces) for pieces in self._pieces]

    @property
    def unreported(self) -> int:
        """Log-probabilities that ``take`` would give, alternatives counted, of all sequences."""
        return sum(1 + len(token.top_logprobs) for tokens in self._unreported for token in tokens)

    def take(self, sequence: int) -> list[Token]:
        """The sequence's tokens whose log-probabilities are still to be reported; they are no longer after this."""
        taken, self._unreported[sequence] = self._unreported[sequence], []
        return taken

    def usage(self) -> dict[str, Any]:
        """OpenAI's usage object, and what the response cache had to do with it."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        } | self.cache_use()

    def cache_use(self) -> dict[str, Any]:
        """What the response cache had to do with it, as the usage has it; nothing without one."""
        if self.cache is None:
            return {}
        use = self.cache
        return {"cache": {"status": use.status, "age_seconds": use.age_seconds, "key": use.key}}


@dataclass(frozen=True, slots=True)
class Plan:
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


async def paid(plan: Plan, ctx: Context) -> AsyncGenerator[Token, None]:
    """Have the caller charged for a plan, and start it. The stream must be closed: then the bill is settled.

    A prompt costs its tokens as soon as the engine is asked, and nothing if that fails before the first token.

    Raises:
        RateLimited, ExceedsRateLimit: see ``Context.charge``; nothing is started then.
    """
    stream = _billed(plan, ctx)
    await anext(stream)  # from here on closing it runs what stands behind its first yield
    return stream


async def _billed(plan: Plan, ctx: Context) -> AsyncGenerator[Token, None]:
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
    plan: Plan, ctx: Context, cache: CacheUse | None = None
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


@asynccontextmanager
async def collecting(
    collected: Collected, stream: AsyncIterator[Token], ctx: Context
) -> AsyncIterator[tuple[Collected, AsyncIterator[Token]]]:
    """Add tokens to a collection as they come out, and report its usage when the block is left."""

    async def tokens() -> AsyncIterator[Token]:
        async for token in stream:
            collected.add(token)
            yield token
            if collected.completion_tokens % _BURST == 0:  # a kept answer is all there: its tokens never wait
                await asyncio.sleep(0)

    if collected.cache is not None:
        ctx.observe(collected.cache_use())
    try:
        yield collected, tokens()
    finally:
        ctx.observe(collected.usage())


def chat_messages(turns: Iterator[tuple[str, Any]]) -> tuple[Message, ...]:
    """Engine messages from (role, content) with content a string or OpenAI's text parts; developer is system."""
    return tuple(
        Message(
            "system" if role == "developer" else role,  # type: ignore[arg-type]  # the schema admits these roles only
            content if isinstance(content, str) else "".join(part.text for part in content),
        )
        for role, content in turns
    )
