"""A whole answer as bytes and back: its tokens by columns, as JSON, behind a checksum."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from runtime.types import Token

_CHECKSUM_BYTES = 16


class CorruptEntry(Exception):
    """The bytes are not those that were packed under this key."""


@dataclass(frozen=True, slots=True)
class CachedAnswer:
    """What an answer is given from again.

    Args:
        created: Unix time at which it was complete.
        seconds: what computing it took.
        prompt_tokens: of all prompts together.
        tokens: of all sequences, in the order they came.
    """

    created: float
    seconds: float
    prompt_tokens: int
    tokens: tuple[Token, ...]


def pack(key: str, answer: CachedAnswer) -> bytes:
    """Bytes that only ``unpack`` with the same key takes.

    Args:
        key: up to 64 characters of ASCII.
    """
    tokens = answer.tokens
    columns: dict[str, Any] = {
        "created": answer.created,
        "seconds": answer.seconds,
        "prompt_tokens": answer.prompt_tokens,
        "id": [token.id for token in tokens],
        "text": [token.text for token in tokens],
        # Mostly the same all the way down: only what differs is written, with its place.
        "sequence": _sparse([token.sequence for token in tokens], 0),
        "finish_reason": _sparse([token.finish_reason for token in tokens], None),
        "logprob": _sparse([token.logprob for token in tokens], None),
        "top_logprobs": _sparse([token.top_logprobs for token in tokens], ()),
        "cached_tokens": _sparse([token.cached_tokens for token in tokens], 0),
    }
    text = json.dumps(columns, separators=(",", ":")).encode()
    return _checksum(key, text) + text


def unpack(key: str, value: bytes) -> CachedAnswer:
    """See ``pack``.

    Raises:
        Damaged: a byte of it is another, or it was kept under another key.
    """
    text = value[_CHECKSUM_BYTES:]
    if _checksum(key, text) != value[:_CHECKSUM_BYTES]:
        raise CorruptEntry
    columns = json.loads(text)
    ids = columns["id"]
    size = len(ids)
    tops = _dense(columns["top_logprobs"], size, ())
    if columns["top_logprobs"]:
        tops = [tuple((token_id, logprob) for token_id, logprob in top) for top in tops]
    tokens = map(
        Token,
        _dense(columns["sequence"], size, 0),
        ids,
        columns["text"],
        _dense(columns["finish_reason"], size, None),
        _dense(columns["logprob"], size, None),
        tops,
        _dense(columns["cached_tokens"], size, 0),
    )
    return CachedAnswer(columns["created"], columns["seconds"], columns["prompt_tokens"], tuple(tokens))


def _checksum(key: str, text: bytes) -> bytes:
    return blake2b(text, digest_size=_CHECKSUM_BYTES, key=key.encode()).digest()


def _sparse(column: Sequence[Any], usual: Any) -> list[Any]:
    """Places and values of what is not as usual; or, where that is most, the column itself behind a -1."""
    odd = [(place, value) for place, value in enumerate(column) if value != usual]
    if 2 * len(odd) > len(column):
        return [-1, *column]
    return [part for pair in odd for part in pair]


def _dense(column: list[Any], size: int, usual: Any) -> list[Any]:
    if column and column[0] == -1:
        return column[1:]
    full = [usual] * size
    for place, value in zip(column[::2], column[1::2], strict=True):
        full[place] = value
    return full
