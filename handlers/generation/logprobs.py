"""Log-probabilities as they are answered: OpenAI's entries, with the token's id beside its text."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Mapping
from typing import Any

from handlers.protocols import Engine
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
        "tokens": [_spelled(entry) for entry in listed],
        "token_logprobs": [entry["logprob"] for entry in listed],
        "top_logprobs": [None if entry["logprob"] is None else _likeliest(entry) for entry in listed],
        "text_offset": offsets,
    }


class TextOffsets:
    """Where tokens begin in a text, in characters. A token that goes on with a character begins behind it.

    Args:
        start: where the first one begins.
    """

    def __init__(self, start: int = 0) -> None:
        self._whole = start
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")  # counts as the text is decoded

    @property
    def next(self) -> int:
        """Where the next token begins."""
        return self._whole + bool(self._utf8.getstate()[0])

    def add(self, raw: bytes) -> int:
        """Take the next token's bytes; where it begins."""
        begin = self.next
        self._whole += len(self._utf8.decode(raw))
        return begin


def _likeliest(entry: Mapping[str, Any]) -> dict[str, float]:
    """The likeliest tokens and the one that is there, each under a name of its own.

    Different tokens may have one text: a byte token and the same character's own. Then the token that is there, or else
    the likeliest, has it as its name, and each other one is ``token_id:`` and its id.
    """
    named: dict[str, float] = {}
    own = _spelled(entry)
    for one in (*entry["top_logprobs"], entry):
        name = _spelled(one)
        if one["id"] != entry["id"] and (name == own or name in named):
            name = f"token_id:{one['id']}"
        named[name] = one["logprob"]
    return named


def _spelled(entry: Mapping[str, Any]) -> str:
    """A token's text, or its bytes as OpenAI writes them where they are not whole characters: ``bytes:\\xe2\\x82``."""
    raw = bytes(entry["bytes"])
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + repr(raw)[2:-1]


def _entry(engine: Engine, token_id: int, logprob: float | None) -> dict[str, Any]:
    text = engine.token_bytes(token_id)
    return {
        "id": token_id,
        "token": text.decode("utf-8", "replace"),
        "logprob": max(logprob if logprob is not None else LEAST, LEAST),
        "bytes": list(text),
    }
