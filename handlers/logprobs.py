"""Log-probabilities as they are answered: OpenAI's entries, with the token's id beside its text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from handlers.context import Engine
from runtime.types import Token

LEAST = -9999.0
"""OpenAI's stand-in for what is next to impossible; JSON has no minus infinity."""


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


def columns(found: Iterable[Mapping[str, Any]], offsets: list[int]) -> dict[str, Any]:
    """Entries in the older form of OpenAI's completions (``handlers.schemas.responses.CompletionLogprobs``).

    Args:
        found: entries; one that follows nothing has None for its log-probability.
        offsets: where the tokens begin in their text.
    """
    listed = list(found)
    return {
        "tokens": [entry["token"] for entry in listed],
        "token_logprobs": [entry["logprob"] for entry in listed],
        "top_logprobs": [
            None
            if entry["logprob"] is None
            else {one["token"]: one["logprob"] for one in (*entry["top_logprobs"], entry)}
            for entry in listed
        ],
        "text_offset": offsets,
    }


def _entry(engine: Engine, token_id: int, logprob: float | None) -> dict[str, Any]:
    text = engine.token_bytes(token_id)
    return {
        "id": token_id,
        "token": text.decode("utf-8", "replace"),
        "logprob": max(logprob if logprob is not None else LEAST, LEAST),
        "bytes": list(text),
    }
