"""Collects the tokens of a generation by sequence."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from handlers.context import Context
from runtime.types import CacheUse, FinishReason, Token

_BURST = 16  # tokens that are handed out before other requests get their turn, in a few milliseconds


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
