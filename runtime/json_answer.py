"""Answers as JSON. A large one is encoded so that other threads run meanwhile.

``json.dumps`` holds the interpreter's lock until it is done, a second and more for a few thousand tokens with all their
likeliest alternatives; the event loop, and with it every other request, would wait.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

_ENCODER = json.JSONEncoder()
MANY = 2_000
"""Arrays and objects that are encoded in one go, in a few milliseconds."""


async def encoded(answer: Mapping[str, Any]) -> bytes:
    """The JSON of an answer, byte for byte that of ``json.dumps``."""
    if not _has_many(answer):
        return _ENCODER.encode(answer).encode()
    return await asyncio.to_thread(_in_pieces, answer)


def _in_pieces(answer: Mapping[str, Any]) -> bytes:
    """Made of small texts by Python code, between whose steps the interpreter lets other threads run."""
    return b"".join(piece.encode() for piece in _ENCODER.iterencode(answer))


def _has_many(answer: Mapping[str, Any]) -> bool:
    """Whether there are more than ``MANY`` arrays and objects; looks at no more than that."""
    found, unseen = 0, [iter(answer.values())]
    while unseen:
        for value in unseen[-1]:
            if isinstance(value, Mapping | list | tuple):
                found += 1
                if found > MANY:
                    return True
                unseen.append(iter(value.values() if isinstance(value, Mapping) else value))
                break
        else:
            unseen.pop()
    return False
