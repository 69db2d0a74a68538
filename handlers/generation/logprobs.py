"""Renders log-probabilities as OpenAI's entries, plus the token's id."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Mapping
from typing import Any

from handlers.protocols import Engine
from runtime.types import Token

_ID = "token_id:"

MIN_LOGPROB = -9999.0
"""The lowest log-probability reported, as OpenAI does; JSON has no minus infinity."""


def entries(engine: Engine, tokens: Iterable[Token], *, as_ids: bool = False) -> list[dict[str, Any]]:
    """Return one entry per token (``handlers.schemas.responses.TokenLogprob``).

    Args:
        engine: the engine that gives a token's bytes.
        tokens: tokens generated with ``SamplingParams.logprobs``.
        as_ids: whether tokens are named by their ids, as vLLM does for ``return_tokens_as_token_ids``.
    """

    def entry(token_id: int, logprob: float | None) -> dict[str, Any]:
        made = _entry(engine, token_id, logprob)
        return made | {"token": _ID + str(token_id)} if as_ids else made

    return [
        entry(token.id, token.logprob) | {"top_logprobs": [entry(*candidate) for candidate in token.top_logprobs]}
        for token in tokens
    ]


def columns(logprob_entries: Iterable[Mapping[str, Any]], offsets: list[int]) -> dict[str, Any]:
    """Convert entries to the form of OpenAI's completions (``handlers.schemas.responses.CompletionLogprobs``).

    Args:
        logprob_entries: the entries; a prompt's first token has None for its log-probability.
        offsets: each token's start in the text, in characters.
    """
    listed = list(logprob_entries)
    return {
        "tokens": [_token_text(entry) for entry in listed],
        "token_logprobs": [entry["logprob"] for entry in listed],
        "top_logprobs": [None if entry["logprob"] is None else _by_name(entry) for entry in listed],
        "text_offset": offsets,
    }


class TextOffsets:
    """Computes the start of each token in a text, in characters.

    A token that continues a character begun by an earlier token starts after that character.

    Args:
        start: the first token's start.
    """

    def __init__(self, start: int = 0) -> None:
        self._characters = start
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")  # counts characters as the decoded text does

    @property
    def next(self) -> int:
        """The next token's start."""
        return self._characters + bool(self._utf8.getstate()[0])

    def add(self, raw: bytes) -> int:
        """Add the next token's bytes and return its start."""
        start = self.next
        self._characters += len(self._utf8.decode(raw))
        return start


def _by_name(entry: Mapping[str, Any]) -> dict[str, float]:
    """Return the log-probabilities of the likeliest tokens and the chosen one, each under a unique name.

    Different tokens may have the same text, for example a byte token and the character's own token. Then the chosen
    token, or else the likeliest, is named by the text, and each other one by ``token_id:`` and its id.
    """
    by_name: dict[str, float] = {}
    chosen = _token_text(entry)
    for candidate in (*entry["top_logprobs"], entry):
        name = _token_text(candidate)
        if candidate["id"] != entry["id"] and (name == chosen or name in by_name):
            name = _ID + str(candidate["id"])
        by_name[name] = candidate["logprob"]
    return by_name


def _token_text(entry: Mapping[str, Any]) -> str:
    """Return a token's text, or as OpenAI does ``bytes:\\xe2\\x82`` if its bytes are not whole characters."""
    if entry["token"] == (name := _ID + str(entry["id"])):
        return name
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
        "logprob": max(logprob if logprob is not None else MIN_LOGPROB, MIN_LOGPROB),
        "bytes": list(text),
    }
