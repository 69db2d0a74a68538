"""Log-probabilities as they are answered: OpenAI's entries, with the token's id beside its text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from handlers.context import Engine
from runtime.types import Token

_LEAST = -9999.0  # OpenAI's stand-in for what is next to impossible; JSON has no minus infinity


def entries(engine: Engine, tokens: Iterable[Token]) -> list[dict[str, Any]]:
    """One entry per token (``handlers.schemas.responses.TokenLogprob``).

    Args:
        engine: knows the bytes of a token.
        tokens: generated with ``SamplingParams.logprobs``.
    """
    return [
        _entry(engine, token.id, token.logprob)
        | {"top_logprobs": [_entry(engine, token_id, logprob) for token_id, logprob in token.top_logprobs]}
        for token in tokens
    ]


def _entry(engine: Engine, token_id: int, logprob: float | None) -> dict[str, Any]:
    text = engine.token_bytes(token_id)
    return {
        "id": token_id,
        "token": text.decode("utf-8", "replace"),
        "logprob": max(logprob if logprob is not None else _LEAST, _LEAST),
        "bytes": list(text),
    }
