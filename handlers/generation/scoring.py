"""What a model makes of a text that is given: the log-probability of each of its tokens behind a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing

from handlers.protocols import Engine
from runtime.types import Job, SamplingParams, Token


async def score(
    engine: Engine, prompt: Sequence[int], text: Sequence[int], top: int = 0, *, queued: bool = False
) -> list[Token]:
    """Score a text.

    Args:
        engine: the model.
        prompt: token ids, at least one.
        text: token ids; none have no scores.
        top: likeliest tokens to report in each place.
        queued: see ``Job``.

    Returns:
        The text's tokens, each with its log-probability by the model alone.

    Raises:
        ServiceError: see ``Engine.stream``; ``ContextLengthExceeded`` if there is no room for both.
    """
    if not text:
        return []
    params = SamplingParams(max_new_tokens=len(text), temperature=0, logprobs=top, forced=tuple(text))
    async with aclosing(engine.stream([Job(tuple(prompt), params, queued)])) as tokens:
        return [token async for token in tokens]
