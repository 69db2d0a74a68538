"""Collects a generation's tokens into texts, log-probabilities and usage."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from handlers.context import Context
from runtime.types import CacheUse, FinishReason, Token, TokenUsage

_BURST = 16  # tokens yielded before the event loop runs other tasks, which takes a few milliseconds


@dataclass(slots=True)
class Collected:
    """Collects every token of a stream by sequence.

    Args:
        prompt_tokens: the number of tokens of all prompts together.
        sequences: the number of sequences.
        cache: how the response cache was used; None without a cache.
        completion_tokens: the number of tokens added.
        cached_tokens: the number of prompt tokens found in the prefix cache.
        reasons: each sequence's finish reason; ``length`` until it is known.
        last: each sequence's last token; None until it has ended.
        started: monotonic time in seconds at which the first token was waited for.
        first: monotonic time of the first token.
    """

    prompt_tokens: int
    sequences: int
    cache: CacheUse | None = None
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasons: list[FinishReason] = field(default_factory=list)
    last: list[Token | None] = field(default_factory=list)
    started: float = 0
    first: float | None = None
    _pieces: list[list[str]] = field(default_factory=list)
    _unreported: list[list[Token]] = field(default_factory=list)
    _ids: list[list[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reasons = ["length"] * self.sequences
        self.last = [None] * self.sequences
        self._pieces = [[] for _ in range(self.sequences)]
        self._unreported = [[] for _ in range(self.sequences)]
        self._ids = [[] for _ in range(self.sequences)]

    def add(self, token: Token) -> None:
        """Add one token."""
        self.completion_tokens += 1
        self.cached_tokens += token.cached_tokens
        self._ids[token.sequence].append(token.id)
        if token.text:
            self._pieces[token.sequence].append(token.text)
        if token.logprob is not None:
            self._unreported[token.sequence].append(token)
        if token.finish_reason is not None:
            self.reasons[token.sequence] = token.finish_reason
            self.last[token.sequence] = token

    @property
    def texts(self) -> list[str]:
        """Each sequence's text so far."""
        return ["".join(pieces) for pieces in self._pieces]

    @property
    def unreported(self) -> int:
        """The number of log-probabilities not yet taken, alternatives included, over all sequences."""
        return sum(1 + len(token.top_logprobs) for tokens in self._unreported for token in tokens)

    def take(self, sequence: int) -> list[Token]:
        """Return and forget a sequence's tokens whose log-probabilities have not been taken yet."""
        taken, self._unreported[sequence] = self._unreported[sequence], []
        return taken

    def take_ids(self, sequence: int) -> list[int]:
        """Return and forget the ids of a sequence's tokens that have not been taken yet."""
        taken, self._ids[sequence] = self._ids[sequence], []
        return taken

    @property
    def usage(self) -> TokenUsage:
        """The usage so far."""
        return TokenUsage(self.prompt_tokens, self.completion_tokens, self.cached_tokens, self.cache)


@asynccontextmanager
async def collecting(
    collected: Collected, stream: AsyncIterator[Token], ctx: Context
) -> AsyncIterator[tuple[Collected, AsyncIterator[Token]]]:
    """Yield the collection and a stream that adds each token to it; report the usage to ``ctx.observe`` at the end.

    Args:
        collected: the collection to fill.
        stream: the tokens of a generation.
        ctx: the operation's context.
    """

    collected.started = ctx.clock.monotonic()

    async def tokens() -> AsyncIterator[Token]:
        async for token in stream:
            if collected.first is None:
                collected.first = ctx.clock.monotonic()
            collected.add(token)
            yield token
            if collected.completion_tokens % _BURST == 0:  # a cached response's tokens never wait
                await asyncio.sleep(0)

    if collected.cache is not None:
        ctx.observe(TokenUsage(cache=collected.cache))
    try:
        yield collected, tokens()
    finally:
        ctx.observe(collected.usage)
