"""Encodes answers as bytes and decodes them, each after a checksum.

A generated answer is its tokens as columns, in JSON; what an encoder made of an input is its numbers.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from runtime.encoder_types import EncoderOutput
from runtime.types import Token

_CHECKSUM_BYTES = 16
_OUTPUT = struct.Struct("<dI")  # Unix time of the computation, number of the input's tokens; float32 numbers follow


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


def pack_output(key: str, output: EncoderOutput, created: float) -> bytes:
    """Encode what an encoder made of an input; only ``unpack_output`` with the same key accepts the result.

    Args:
        key: the entry's key, up to 64 ASCII characters.
        output: the result.
        created: Unix time in seconds at which it was computed.
    """
    content = _OUTPUT.pack(created, output.tokens) + output.values.astype("<f4").tobytes()
    return _checksum(key, content) + content


def unpack_output(key: str, value: bytes) -> tuple[EncoderOutput, float]:
    """Decode the bytes of ``pack_output``.

    Returns:
        The result, and Unix time in seconds at which it was computed.

    Raises:
        CorruptEntry: the bytes were changed, or were stored under another key.
    """
    import numpy as np  # not before a model that encodes is loaded

    content = value[_CHECKSUM_BYTES:]
    if _checksum(key, content) != value[:_CHECKSUM_BYTES]:
        raise CorruptEntry
    created, tokens = _OUTPUT.unpack_from(content)
    return EncoderOutput(tokens, np.frombuffer(content, "<f4", offset=_OUTPUT.size)), created


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
