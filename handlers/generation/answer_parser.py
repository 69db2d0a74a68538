"""Splits an answer, while it is generated, into reasoning, content and tool calls."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

from runtime.answer_format import THINK, AnswerFormat

_HIDDEN = 0xD800  # tokens without a text stand in the buffer as surrogates, which no text contains
_MOST_HIDDEN = 0x800


class AnswerParser:
    """An incremental parser of one answer. Its input may be cut into pieces anywhere.

    Args:
        form: how the model writes its answers.
        names: the functions that may be called; none for an answer without calls.
        reasoning: ``none``: reasoning stays part of the content; ``optional``: the answer may begin with it; ``open``:
            the answer begins inside of it.
        calls_only: whether the answer has no content.
        new_id: returns a random string for a call's id.

    Attributes:
        calls: the number of calls that have begun.
        reasoned: whether the last token belonged to the reasoning, whose first and last tags count.
    """

    def __init__(
        self,
        form: AnswerFormat,
        names: Sequence[str] = (),
        *,
        reasoning: Literal["none", "optional", "open"] = "none",
        calls_only: bool = False,
        new_id: Callable[[], str],
    ) -> None:
        tokens = list(form.hidden.items())[:_MOST_HIDDEN]
        signs = {name: chr(_HIDDEN + i) for i, (name, _) in enumerate(tokens)}
        self._signs = {token_id: signs[name] for name, token_id in tokens}

        def spell(text: str) -> str:
            for name, sign in signs.items():
                text = text.replace(name, sign)
            return text

        syntax = form.tools
        self._opening, self._closing = map(spell, THINK)
        self._begin = spell(syntax.begin)
        self._calls_only = calls_only
        heads = {name: spell(syntax.before_name + name + syntax.before_arguments) for name in names}
        self._later = _Heads(heads, "")
        self._marked = _Heads(heads, self._begin)
        self._bare = _Heads(heads if syntax.bare else {}, "")
        self._new_id = new_id
        self._buffer = ""
        self._state = {"none": self._content, "optional": self._start, "open": self._reasoning}[reasoning]
        self._strip = reasoning == "open"  # whether white space at the start of the current part is dropped
        self._depth = 0
        self._in_string = self._escaped = False
        self.calls = 0
        self.reasoned = False

    @property
    def complete(self) -> bool:
        """Whether all calls that have begun are complete."""
        return self._state != self._arguments

    def push(self, token_id: int, text: str) -> list[dict[str, Any]]:
        """Take one token and return the deltas that are final with it, in OpenAI's form.

        Args:
            token_id: the token's id.
            text: the text that the token completes, all of it before the token itself if that has no text.
        """
        self._buffer += text + self._signs.get(token_id, "")
        before = self._state
        deltas = self._run()
        self.reasoned = self._reasoning in (before, self._state)
        return deltas

    def finish(self) -> list[dict[str, Any]]:
        """Return the last deltas; no part of the syntax of calls or reasoning is among them."""
        deltas = self._run()
        rest, self._buffer = self._buffer, ""
        if self._state == self._reasoning:
            if kept := _plain(rest).rstrip():
                deltas.append({"reasoning_content": kept})
        elif self._state in (self._start, self._content):
            kept = rest.partition(self._begin)[0] if self._marked else rest
            self._send(kept.lstrip() if self._strip else kept, deltas)
        return deltas

    def _run(self) -> list[dict[str, Any]]:
        deltas: list[dict[str, Any]] = []
        while self._state(deltas):
            pass
        return deltas

    def _start(self, deltas: list[dict[str, Any]]) -> bool:
        """Decide whether the answer begins with reasoning."""
        text = self._buffer.lstrip()
        if text.startswith(self._opening):
            self._buffer, self._strip, self._state = text[len(self._opening) :], True, self._reasoning
            return True
        if self._opening.startswith(text):
            return False
        self._state = self._content
        return True

    def _reasoning(self, deltas: list[dict[str, Any]]) -> bool:
        if self._strip:
            self._buffer = self._buffer.lstrip()
            if not self._buffer:
                return False
            self._strip = False
        text, closing, rest = self._buffer.partition(self._closing)
        if closing:
            final, self._buffer = text.rstrip(), rest
            self._strip, self._state = True, self._content
        else:
            final = text[: len(text) - _overlap(text, self._closing)].rstrip()
            self._buffer = text[len(final) :]
        if final := _plain(final):
            deltas.append({"reasoning_content": final})
        return bool(closing)

    def _content(self, deltas: list[dict[str, Any]]) -> bool:
        if self._strip:
            self._buffer = self._buffer.lstrip()
            if not self._buffer:
                return False
        text = self._buffer
        found = (self._bare.at(text, 0) if self._bare else None) or self._marked.find(text)
        if found is not None:
            start, end, name = found
            self._send(text[:start].rstrip(), deltas)
            self._call(name, text[end:], deltas)
            return True
        keep = len(text)
        if self._marked or self._bare:
            if self._bare and self._bare.begun(text, 0):
                return False
            keep = self._marked.unsure(text)
            keep = len(text[:keep].rstrip())
        self._buffer = text[keep:]
        self._send(text[:keep], deltas)
        return False

    def _send(self, content: str, deltas: list[dict[str, Any]]) -> None:
        content = _plain(content)
        if content and not self._calls_only:
            self._strip, self._bare = False, _Heads({}, "")
            deltas.append({"content": content})

    def _call(self, name: str, rest: str, deltas: list[dict[str, Any]]) -> None:
        """Begin a call."""
        function = {"name": name, "arguments": ""}
        call = {"index": self.calls, "id": f"call_{self._new_id()}", "type": "function", "function": function}
        deltas.append({"tool_calls": [call]})
        self.calls += 1
        self._buffer, self._depth, self._state = rest, 0, self._arguments

    def _arguments(self, deltas: list[dict[str, Any]]) -> bool:
        text, end = self._buffer, self._end_of_object(self._buffer)
        piece = _plain(text[:end])
        self._buffer = text[end:]
        if piece:
            deltas.append({"tool_calls": [{"index": self.calls - 1, "function": {"arguments": piece}}]})
        if self._depth == 0 and end:
            self._state = self._between
            return True
        return False

    def _end_of_object(self, text: str) -> int:
        """Return the position behind the end of the JSON object of which ``text`` is the next piece, or its length."""
        for place, character in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._in_string:
                self._escaped = character == "\\"
                self._in_string = character != '"'
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return place + 1
        return len(text)

    def _between(self, deltas: list[dict[str, Any]]) -> bool:
        """Wait for the next call; all other text between calls belongs to their syntax."""
        found = self._later.find(self._buffer)
        if found is None:
            self._buffer = self._buffer[self._later.unsure(self._buffer) :]
            return False
        _, end, name = found
        self._call(name, self._buffer[end:], deltas)
        return True


class _Heads:
    """The texts with which a call begins, up to its arguments.

    Args:
        heads: the text of each function.
        begin: what precedes each.
    """

    def __init__(self, heads: dict[str, str], begin: str) -> None:
        self._names = {begin + head: name for name, head in heads.items()}
        self._longest = max(map(len, self._names), default=0)
        self._first = {head[0] for head in self._names}
        alternatives = sorted(self._names, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, alternatives)) or "(?!)")

    def __bool__(self) -> bool:
        return bool(self._names)

    def find(self, text: str) -> tuple[int, int, str] | None:
        """Return the start and end of the first head in a text, and its function."""
        match = self._pattern.search(text)
        return None if match is None else (match.start(), match.end(), self._names[match[0]])

    def at(self, text: str, place: int) -> tuple[int, int, str] | None:
        """Return the same for a head at one position of a text."""
        match = self._pattern.match(text, place)
        return None if match is None else (match.start(), match.end(), self._names[match[0]])

    def begun(self, text: str, place: int) -> bool:
        """Return whether a text that is cut off may have a head at a position."""
        rest = text[place:]
        return any(head.startswith(rest) for head in self._names)

    def unsure(self, text: str) -> int:
        """Return the first position at which a text that is cut off may have a head."""
        for place in range(max(0, len(text) - self._longest + 1), len(text)):
            if text[place] in self._first and self.begun(text, place):
                return place
        return len(text)


def _overlap(text: str, mark: str) -> int:
    """Return the length of the longest end of ``text`` that is a proper beginning of ``mark``."""
    return next((size for size in range(min(len(text), len(mark) - 1), 0, -1) if mark.startswith(text[-size:])), 0)


def _plain(text: str) -> str:
    """Return a text without the signs of tokens that have no text."""
    return text if text.isascii() else re.sub("[\ud800-\udfff]", "", text)


def message(deltas: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return the assistant's message that the deltas of an answer add up to, in OpenAI's form."""
    parts: dict[str, list[str]] = {"content": [], "reasoning_content": []}
    calls: list[dict[str, Any]] = []
    arguments: list[list[str]] = []
    for delta in deltas:
        for name, pieces in parts.items():
            pieces.append(delta.get(name) or "")
        for part in delta.get("tool_calls", ()):
            if "id" in part:
                calls.append({key: value for key, value in part.items() if key != "index"})
                arguments.append([])
            arguments[part["index"]].append(part["function"]["arguments"])
    content, reasoning = ("".join(pieces) for pieces in parts.values())
    answer: dict[str, Any] = {"role": "assistant", "content": content or None if calls else content}
    if reasoning:
        answer["reasoning_content"] = reasoning
    if calls:
        answer["tool_calls"] = [
            call | {"function": call["function"] | {"arguments": "".join(pieces)}}
            for call, pieces in zip(calls, arguments, strict=True)
        ]
    return answer
