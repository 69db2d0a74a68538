"""Scores a given text: the log-probability of each of its tokens after a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing

from handlers.protocols import Engine
from runtime.types import Job, SamplingParams, Token


async def score(
    engine: Engine, prompt: Sequence[int], text: Sequence[int], top: int = 0, *, background: bool = False
) -> list[Token]:
    """Return a text's tokens with their log-probabilities after a prompt.

    Args:
        engine: the model's engine.
        prompt: the prompt's token ids, at least one.
        text: the text's token ids; an empty text gives an empty list.
        top: the number of likeliest tokens to report per position.
        background: whether this is background work, see ``Job.background``.

    Returns:
        The text's tokens; the log-probabilities are the model's own, before penalties and temperature.

    Raises:
        ContextLengthExceeded: prompt and text together exceed the context.
        ServiceError: other errors of ``Engine.stream``.
    """
    if not text:
        return []
    params = SamplingParams(max_new_tokens=len(text), temperature=0, logprobs=top, forced=tuple(text))
    async with aclosing(engine.stream([Job(tuple(prompt), params, background)])) as tokens:
        return [token async for token in tokens]
