"""Answers as JSON."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from runtime.json_answer import MANY, encoded


class _Seen(dict[str, Any]):
    """A dictionary that remembers the threads that read it."""

    threads: set[int]

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        self.threads = set()

    def items(self) -> Any:
        self.threads.add(threading.get_ident())
        return super().items()


def _answer(entries: int) -> dict[str, Any]:
    seen = _Seen(a=0.1)
    return {"text": 'é"\n', "choices": [{"content": [seen] + [{"a": -1e-9, "b": None} for _ in range(entries - 1)]}]}


@pytest.mark.parametrize("entries", [1, MANY + 1])
async def test_it_is_what_dumps_gives(entries: int) -> None:
    """Byte for byte, large or small."""
    answer = _answer(entries)
    assert await encoded(answer) == json.dumps(answer).encode()


async def test_a_large_answer_is_encoded_elsewhere() -> None:
    """On another thread than the event loop's, in small pieces; a small one here."""
    small, large = _answer(MANY // 2), _answer(MANY + 1)
    await encoded(large)
    assert threading.get_ident() not in large["choices"][0]["content"][0].threads != set()
    await encoded(small)
    assert small["choices"][0]["content"][0].threads <= {threading.get_ident()}
