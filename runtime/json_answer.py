"""Encodes answers as JSON; large ones are encoded so that other threads can run meanwhile.

``json.dumps`` holds the GIL until it is done, for a second and more with a few thousand tokens and all their top
log-probabilities; the event loop, and with it every other request, would wait.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from typing import Any

_ENCODER = json.JSONEncoder()
MAX_INLINE_ITEMS = 2_000
"""Maximum number of items of an answer encoded on the event loop, which takes a few milliseconds.

An item is an array, an object, or eight members of an array: vectors have few arrays, and many numbers.
"""
_PIECE_ITEMS = 200  # maximum number of items that ``_pieces`` encodes in one call
_SLICE = 1_000  # members of an array that ``_pieces`` encodes in one call, if they have few items


async def encoded(answer: Mapping[str, Any]) -> bytes:
    """Return an answer as JSON, byte for byte as ``json.dumps`` encodes it; a large one is encoded on another thread.

    Args:
        answer: dictionaries with string keys, lists, strings, numbers, booleans and None.
    """
    return await asyncio.to_thread(dumps, answer) if is_large(answer) else dumps(answer)


def is_large(answer: Mapping[str, Any]) -> bool:
    """Return whether an answer has so many items that it is encoded off the event loop."""
    return _more_than(answer, MAX_INLINE_ITEMS)


def dumps(answer: Mapping[str, Any]) -> bytes:
    """Return an answer as JSON on the calling thread; the GIL is released between pieces, so other threads can run."""
    return b"".join(piece.encode() for piece in _pieces(answer))


def _pieces(value: Any) -> Iterator[str]:
    """Yield the JSON in short pieces, each encoded quickly: between them the interpreter lets other threads run."""
    if not _more_than(value, _PIECE_ITEMS):
        yield _ENCODER.encode(value)
    elif isinstance(value, dict):
        before = "{"
        for name, member in value.items():
            yield f"{before}{_ENCODER.encode(name)}: "
            yield from _pieces(member)
            before = ", "
        yield "}"
    else:
        before = "["
        for start in range(0, len(value), _SLICE):
            some = value[start : start + _SLICE]
            if not _more_than(some, _PIECE_ITEMS):
                yield before + _ENCODER.encode(some)[1:-1]
                before = ", "
                continue
            for member in some:
                yield before
                yield from _pieces(member)
                before = ", "
        yield "]"


def _more_than(value: Any, limit: int) -> bool:
    """Return whether a value contains more than ``limit`` items; stops counting there."""
    count, unseen = 0, [iter((value,))]
    while unseen:
        for member in unseen[-1]:
            if isinstance(member, dict | list | tuple):
                count += 1 if isinstance(member, dict) else 1 + len(member) // 8
                if count > limit:
                    return True
                unseen.append(iter(member.values() if isinstance(member, dict) else member))
                break
        else:
            unseen.pop()
    return False
