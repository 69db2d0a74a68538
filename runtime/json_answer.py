"""Answers as JSON. A large one is encoded so that other threads run meanwhile.

``json.dumps`` holds the interpreter's lock until it is done, a second and more for a few thousand tokens with all their
likeliest alternatives; the event loop, and with it every other request, would wait.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from typing import Any

_ENCODER = json.JSONEncoder()
MANY = 2_000
"""Arrays and objects that are encoded on the event loop, in a few milliseconds."""
_FEW = 200  # encoded in one go, elsewhere


async def encoded(answer: Mapping[str, Any]) -> bytes:
    """The JSON of an answer, byte for byte that of ``json.dumps``.

    Args:
        answer: of dictionaries with strings as keys, lists, strings, numbers, booleans and None.
    """
    return await asyncio.to_thread(dumps, answer) if is_large(answer) else dumps(answer)


def is_large(answer: Mapping[str, Any]) -> bool:
    """Whether encoding an answer takes long enough to be done on another thread than the event loop's."""
    return _more_than(answer, MANY)


def dumps(answer: Mapping[str, Any]) -> bytes:
    """``encoded`` for a thread that may take its time; the interpreter lets others run meanwhile."""
    return b"".join(piece.encode() for piece in _pieces(answer))


def _pieces(value: Any) -> Iterator[str]:
    """Parts of the JSON, none of which takes long: between them the interpreter lets other threads run."""
    if not _more_than(value, _FEW):
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
        for member in value:
            yield before
            yield from _pieces(member)
            before = ", "
        yield "]"


def _more_than(value: Any, most: int) -> bool:
    """Whether a value holds more than so many arrays and objects; looks at no more of them than that."""
    found, unseen = 0, [iter((value,))]
    while unseen:
        for member in unseen[-1]:
            if isinstance(member, dict | list | tuple):
                found += 1
                if found > most:
                    return True
                unseen.append(iter(member.values() if isinstance(member, dict) else member))
                break
        else:
            unseen.pop()
    return False
