"""Exercise: from logits to the next token. See docs/learn/generation.md."""

from __future__ import annotations

from collections.abc import Sequence


def next_token(
    logits: Sequence[float], draw: float, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> int:
    """Return the index of the next token.

    Args:
        logits: the model's score of each token.
        draw: a random number, at least 0 and below 1; the same number gives the same token.
        temperature: divides the logits; 0 takes the likeliest token, of equal ones the first.
        top_k: only this many likeliest tokens are possible; 0 for all.
        top_p: of these, only the fewest likeliest ones that have at least this probability together are possible.
    """
    return max(range(len(logits)), key=lambda token: logits[token])
