"""Judges a test: it passes with the right implementation, and fails with each wrong one."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType


class _Right:
    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        if self.stopped:
            return ""
        text = self._held + piece
        found = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        held = self._may_begin(text)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def _may_begin(self, text: str) -> int:
        """Return the length of the longest end of a text that begins a stop string."""
        return max(
            (size for stop in self._stops for size in range(1, len(stop)) if text.endswith(stop[:size])), default=0
        )

    def finish(self) -> str:
        held, self._held = self._held, ""
        return "" if self.stopped else held


class _HoldsNothing(_Right):
    def _may_begin(self, text: str) -> int:
        return 0


class _HoldsTooMuch(_Right):
    def _may_begin(self, text: str) -> int:
        return min(len(text), max(map(len, self._stops), default=0))


class _HoldsFirst(_Right):
    def _may_begin(self, text: str) -> int:
        stop = self._stops[0]
        return max((size for size in range(1, len(stop)) if text.endswith(stop[:size])), default=0)


class _HoldsShortest(_Right):
    def _may_begin(self, text: str) -> int:
        return min(
            (size for stop in self._stops for size in range(1, len(stop)) if text.endswith(stop[:size])), default=0
        )


class _FindsFirstListed(_Right):
    def push(self, piece: str) -> str:
        text = self._held + piece
        for stop in self._stops:
            if not self.stopped and stop in text:
                self.stopped, self._held = True, ""
                return text[: text.find(stop)]
        return super().push(piece)


class _Forgets(_Right):
    def finish(self) -> str:
        return ""


class _GoesOn(_Right):
    def push(self, piece: str) -> str:
        return piece if self.stopped else super().push(piece)


class _Includes(_Right):
    def push(self, piece: str) -> str:
        text, before = self._held + piece, super().push(piece)
        stop = next((stop for stop in self._stops if text.startswith(stop, len(before))), "")
        return before + stop if self.stopped else before


class _SaysNothing(_Right):
    def push(self, piece: str) -> str:
        text, stopped = super().push(piece), self.stopped
        return "" if stopped else text


def _survives(exercise: ModuleType, kind: type[_Right]) -> bool:
    try:
        exercise.check(kind)
    except Exception:  # any failure of the test counts
        return False
    return True


def check_right(exercise: ModuleType) -> None:
    """The test passes with the right implementation."""
    exercise.check(_Right)


def check_split(exercise: ModuleType) -> None:
    """It notices a stop string that comes in two pieces, of one stop string and of the second."""
    assert not _survives(exercise, _HoldsNothing)
    assert not _survives(exercise, _HoldsFirst)


def check_late(exercise: ModuleType) -> None:
    """It notices text that is held back although it cannot become a stop string."""
    assert not _survives(exercise, _HoldsTooMuch)


def check_overlap(exercise: ModuleType) -> None:
    """It notices that too little is held back where several beginnings fit (a stop string like aab after aa)."""
    assert not _survives(exercise, _HoldsShortest)


def check_earliest(exercise: ModuleType) -> None:
    """It notices that the first listed stop string wins over the first in the text."""
    assert not _survives(exercise, _FindsFirstListed)


def check_end(exercise: ModuleType) -> None:
    """It notices text that is lost at the end of the stream."""
    assert not _survives(exercise, _Forgets)


def check_after(exercise: ModuleType) -> None:
    """It notices text that is sent after a stop string, the stop string itself, and a missing text before it."""
    assert not _survives(exercise, _GoesOn)
    assert not _survives(exercise, _Includes)
    assert not _survives(exercise, _SaysNothing)
