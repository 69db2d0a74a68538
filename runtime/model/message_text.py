"""Marks the characters of messages, so that they can be distinguished from the chat template's own in rendered text.

Every character that a template could write itself has a stand-in, and messages enter the template with stand-ins in
place of these characters. Whatever the template does to a text (slices, joins, replacements), the origin of each
rendered character stays known. The stand-ins are surrogates, which no valid text contains (Unicode 16, section 3.8).

The template's result must not change: it must compare and split texts by their original characters. ``MessageText`` is
a ``str`` that does so, as ``markupsafe.Markup`` is one for escaped HTML.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Iterator
from typing import Any, SupportsIndex

_FIRST, _COUNT = 0xD800, 2048
STAND_INS = re.compile("[\ud800-\udfff]")


class Marks:
    """The stand-ins for messages' characters in one template.

    Args:
        own: all characters that the template may write itself, in any order. White space has no stand-ins, and neither
            have characters after the first 2,048 different ones, which always count as a message's.
    """

    def __init__(self, own: str) -> None:
        characters = dict.fromkeys(c for c in string.printable + own if not c.isspace())
        self._own = frozenset(list(characters)[:_COUNT])
        self._stand_ins = {ord(c): chr(_FIRST + i) for i, c in enumerate(characters) if c in self._own}
        self._originals = {ord(stand_in): chr(code) for code, stand_in in self._stand_ins.items()}

    def mark(self, text: str) -> MessageText:
        """Return a message's text with stand-ins."""
        return MessageText(_translate(text, self._stand_ins), text, self)

    def unmark(self, value: Any) -> Any:
        """Return a text with its original characters; a value that is not a string is returned unchanged."""
        if isinstance(value, MessageText):
            return value._plain
        if isinstance(value, str) and not value.isascii() and STAND_INS.search(value):
            return _translate(value, self._originals)
        return value

    def recognize(self, text: str) -> str:
        """Return a ``MessageText`` for a text with stand-ins that has become a plain ``str``; other texts unchanged."""
        if isinstance(text, MessageText) or not STAND_INS.search(text):
            return text
        return MessageText(text, self.unmark(text), self)

    def join(self, pieces: Iterable[str]) -> str:
        """Concatenate pieces; the result is a ``MessageText`` if one of them is."""
        pieces = list(pieces)
        text = "".join(pieces)
        if any(isinstance(piece, MessageText) for piece in pieces):
            return MessageText(text, "".join(map(self.unmark, pieces)), self)
        return text

    def first_of_message(self, rendered: str, start: int, end: int) -> int | None:
        """Return the position of the first character from a message, white space excepted; None if there is none.

        Args:
            rendered: the rendered text, with stand-ins.
            start, end: the part of the text to search.
        """
        part = str.__getitem__(rendered, slice(start, end))
        return next((start + i for i, c in enumerate(part) if c not in self._own and not c.isspace()), None)

    def end_of_messages(self, rendered: str) -> int:
        """Return the position after the last character from a message, white space excepted; 0 if there is none."""
        text = str.__getitem__(rendered, slice(None))
        return next(
            (i + 1 for i in reversed(range(len(text))) if text[i] not in self._own and not text[i].isspace()), 0
        )


def _translate(text: str, table: dict[int, str]) -> str:
    """Call ``str.translate`` piecewise so that other threads can run: it takes 70 ms for a million characters."""
    step = 1 << 16
    return "".join(text[start : start + step].translate(table) for start in range(0, len(text), step))


def _reads(name: str) -> Any:
    """Return a method of ``str`` that works on the original characters; for methods that do not return text."""

    def method(self: MessageText, *args: Any) -> Any:
        return getattr(self._plain, name)(*map(self._marks.unmark, args))

    return method


def _rewrites(name: str) -> Any:
    """Return a method of ``str`` that works on the original characters and marks its result as a message's text."""

    def method(self: MessageText, *args: Any) -> MessageText:
        return self._marks.mark(getattr(self._plain, name)(*args))

    return method


class MessageText(str):
    """A text with stand-ins that behaves like the original text in the operations that templates use.

    Operations that are not overridden (``%``, ``format``, ``join`` of the template's own strings, ...) return a ``str``
    with stand-ins: safe, but different from the template's strings in comparisons.
    """

    __slots__ = ("_marks", "_plain")

    _plain: str
    _marks: Marks

    def __new__(cls, marked: str, plain: str, marks: Marks) -> MessageText:
        """Create a message's text.

        Args:
            marked: the text with stand-ins.
            plain: the same text with its original characters.
            marks: the stand-ins.
        """
        self = super().__new__(cls, marked)
        self._plain, self._marks = plain, marks
        return self

    def __str__(self) -> str:
        return self

    def __repr__(self) -> str:
        return self._marks.mark(repr(self._plain))

    def __hash__(self) -> int:
        return hash(self._plain)

    def __eq__(self, other: object) -> bool:
        return bool(self._plain == self._marks.unmark(other))

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __add__(self, other: Any) -> str:
        return self._marks.join((self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: Any) -> str:
        return self._marks.join((other, self)) if isinstance(other, str) else NotImplemented

    def __getitem__(self, key: SupportsIndex | slice) -> MessageText:
        return MessageText(super().__getitem__(key), self._plain[key], self._marks)

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))

    __contains__ = _reads("__contains__")
    count = _reads("count")
    endswith = _reads("endswith")
    find = _reads("find")
    index = _reads("index")
    isalnum = _reads("isalnum")
    isalpha = _reads("isalpha")
    isascii = _reads("isascii")
    isdecimal = _reads("isdecimal")
    isdigit = _reads("isdigit")
    islower = _reads("islower")
    isnumeric = _reads("isnumeric")
    isprintable = _reads("isprintable")
    istitle = _reads("istitle")
    isupper = _reads("isupper")
    rfind = _reads("rfind")
    rindex = _reads("rindex")
    startswith = _reads("startswith")

    capitalize = _rewrites("capitalize")
    casefold = _rewrites("casefold")
    lower = _rewrites("lower")
    swapcase = _rewrites("swapcase")
    title = _rewrites("title")
    upper = _rewrites("upper")

    def lstrip(self, chars: str | None = None, /) -> MessageText:
        """Return the text without leading ``chars`` (default: white space)."""
        return self[len(self) - len(self._plain.lstrip(self._marks.unmark(chars))) :]

    def rstrip(self, chars: str | None = None, /) -> MessageText:
        """Return the text without trailing ``chars`` (default: white space)."""
        return self[: len(self._plain.rstrip(self._marks.unmark(chars)))]

    def strip(self, chars: str | None = None, /) -> MessageText:
        """Return the text without leading and trailing ``chars`` (default: white space)."""
        return self.lstrip(chars).rstrip(chars)

    def removeprefix(self, prefix: str, /) -> MessageText:
        """Return the text without a prefix, if it begins with it."""
        return self[len(prefix) :] if self.startswith(prefix) else self

    def removesuffix(self, suffix: str, /) -> MessageText:
        """Return the text without a suffix, if it ends with it."""
        return self[: len(self) - len(suffix)] if self.endswith(suffix) else self

    def partition(self, sep: str, /) -> Any:
        """Return the text before the first ``sep``, the separator, and the text after it."""
        return tuple(self._apart(self._plain.partition(self._marks.unmark(sep))))

    def rpartition(self, sep: str, /) -> Any:
        """Return the text before the last ``sep``, the separator, and the text after it."""
        return tuple(self._apart(self._plain.rpartition(self._marks.unmark(sep))))

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        """Split the text at separators, from the left."""
        return self._between(sep, self._plain.split(self._marks.unmark(sep), maxsplit))

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        """Split the text at separators, from the right."""
        return self._between(sep, self._plain.rsplit(self._marks.unmark(sep), maxsplit))

    def splitlines(self, keepends: bool = False) -> list[str]:
        """Split the text into lines."""
        lines = self._apart(self._plain.splitlines(True))
        return (
            lines if keepends else [line[: len(end)] for line, end in zip(lines, self._plain.splitlines(), strict=True)]
        )

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> str:
        """Replace ``old`` by ``new``, at most ``count`` times if that is not negative."""
        if not old:
            return super().replace(old, new, count)
        first, *others = self.split(old, count)
        return self._marks.join([first, *(piece for other in others for piece in (new, other))])

    def _apart(self, pieces: Iterable[str]) -> list[str]:
        """Return adjacent pieces of the original text with their stand-ins."""
        start, found = 0, list[str]()
        for piece in pieces:
            found.append(self[start : start + len(piece)])
            start += len(piece)
        return found

    def _between(self, sep: str | None, pieces: Iterable[str]) -> list[str]:
        """Return pieces of the original text with their stand-ins.

        Args:
            sep: the separator between the pieces; None for any amount of white space.
            pieces: the pieces, without stand-ins.
        """
        start, found = 0, list[str]()
        for piece in pieces:
            if sep is None:
                start = self._plain.index(piece, start)
            found.append(self[start : start + len(piece)])
            start += len(piece) + len(sep or "")
        return found
