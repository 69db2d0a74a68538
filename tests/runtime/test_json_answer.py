"""Answers as JSON."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from runtime.json_answer import MAX_INLINE_ITEMS, encoded, is_large


class _Seen(dict[str, Any]):
    """A dictionary that remembers the threads that walk through it."""

    threads: set[int]

    def values(self) -> Any:
        self.threads.add(threading.get_ident())
        return super().values()


def _answer(entries: int) -> tuple[dict[str, Any], _Seen]:
    """An answer, and its last entry."""
    last = _Seen(a=[], b={}, c=0.1)
    last.threads = set()
    content = [{"a": -1e-9, "b": [None, True]} for _ in range(entries // 2)] + [last]
    return {"text": 'é"\n', "none": [], "choices": [{"content": content}, {"content": content[:1]}]}, last


@pytest.mark.parametrize("entries", [1, MAX_INLINE_ITEMS + 1])
async def test_it_is_what_dumps_gives(entries: int) -> None:
    """Byte for byte, large or small."""
    answer, _ = _answer(entries)
    assert await encoded(answer) == json.dumps(answer).encode()


async def test_a_large_answer_is_encoded_elsewhere() -> None:
    """On another thread than the event loop's; a small one here."""
    answer, last = _answer(2 * MAX_INLINE_ITEMS)
    await encoded(answer)
    assert last.threads
    assert threading.get_ident() not in last.threads
    answer, last = _answer(MAX_INLINE_ITEMS // 2)
    await encoded(answer)
    assert last.threads == {threading.get_ident()}


async def test_many_numbers() -> None:
    """Vectors are few arrays and many numbers: they are encoded elsewhere, too, and in order."""
    answer = {"data": [{"embedding": [i / 7 for i in range(4000)]}, {"embedding": list(range(2500))}] * 3}
    assert is_large(answer)
    assert await encoded(answer) == json.dumps(answer).encode()
