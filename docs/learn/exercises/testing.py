"""Exercise: write the test. See docs/learn/testing.md."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol


class StopFinder(Protocol):
    """Searches a stream of texts for stop strings.

    ``push`` takes the next piece and returns what can be sent to the client: the text before the first stop string, and
    nothing that may still become one. ``finish`` returns what was held back, when the stream ends without a stop
    string. After a stop string both return "", and ``stopped`` is true.
    """

    stopped: bool

    def push(self, piece: str) -> str: ...

    def finish(self) -> str: ...


def check(make: Callable[[Sequence[str]], StopFinder]) -> None:
    """Raise an AssertionError unless ``make``, called with stop strings, makes a StopFinder that does all of that."""
    finder = make(["STOP"])
    assert finder.push("one STOP two") == "one "
