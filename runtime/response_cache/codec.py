"""Encodes a complete answer as bytes and decodes it: its tokens as columns, in JSON, after a checksum."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from runtime.types import Token

_CHECKSUM_BYTES = 16


class CorruptEntry(Exception):
    """The bytes are not those that ``pack`` made for this key."""


@dataclass(frozen=True, slots=True)
class CachedAnswer:
    """A complete answer, as it is stored and replayed.

    Args:
        created: Unix time in seconds at which the answer was complete.
        seconds: the time that computing it took.
        prompt_tokens: the number of tokens of all prompts together.
        tokens: the tokens of all sequences, in the order they were generated.
    """

    created: float
    seconds: float
    prompt_tokens: int
    tokens: tuple[Token, ...]


def pack(key: str, answer: CachedAnswer) -> bytes:
    """Encode an answer; only ``unpack`` with the same key accepts the result.

    Args:
        key: the entry's key, up to 64 ASCII characters.
        answer: the answer.
    """
    tokens = answer.tokens
    columns: dict[str, Any] = {
        "created": answer.created,
        "seconds": answer.seconds,
        "prompt_tokens": answer.prompt_tokens,
        "id": [token.id for token in tokens],
        "text": [token.text for token in tokens],
        # Nearly all values in these columns are the default: only the others are written, with their positions.
        "sequence": _sparse([token.sequence for token in tokens], 0),
        "finish_reason": _sparse([token.finish_reason for token in tokens], None),
        "logprob": _sparse([token.logprob for token in tokens], None),
        "top_logprobs": _sparse([token.top_logprobs for token in tokens], ()),
        "cached_tokens": _sparse([token.cached_tokens for token in tokens], 0),
        "stop": _sparse([token.stop for token in tokens], None),
    }
    text = json.dumps(columns, separators=(",", ":")).encode()
    return _checksum(key, text) + text


def unpack(key: str, value: bytes) -> CachedAnswer:
    """Decode the bytes of ``pack``.

    Raises:
        CorruptEntry: the bytes were changed, or were stored under another key.
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
        _dense(columns.get("stop", []), size, None),  # entries of older versions have none
    )
    return CachedAnswer(columns["created"], columns["seconds"], columns["prompt_tokens"], tuple(tokens))


def _checksum(key: str, text: bytes) -> bytes:
    return blake2b(text, digest_size=_CHECKSUM_BYTES, key=key.encode()).digest()


def _sparse(column: Sequence[Any], default: Any) -> list[Any]:
    """Return positions and values that differ from ``default``, or, if most differ, -1 and the complete column."""
    exceptions = [(index, value) for index, value in enumerate(column) if value != default]
    if 2 * len(exceptions) > len(column):
        return [-1, *column]
    return [part for pair in exceptions for part in pair]


def _dense(column: list[Any], size: int, default: Any) -> list[Any]:
    if column and column[0] == -1:
        return column[1:]
    full = [default] * size
    for index, value in zip(column[::2], column[1::2], strict=True):
        full[index] = value
    return full
