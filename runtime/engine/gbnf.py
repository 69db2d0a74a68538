"""Translates llama.cpp's grammars (GBNF) to Lark's syntax as llguidance reads it.

The translation is exact, which takes care because a terminal of Lark matches as long a text as it can: a grammar whose
rules do not refer to themselves becomes one terminal, and in others each terminal is one character.

Source: ``grammars/README.md`` of llama.cpp.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NoReturn, TypeAlias

_SPACE = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_LINES = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_NAME = re.compile(r"[a-zA-Z0-9_-]+")
_TOKEN = re.compile(r"(!?)<(?:\[([0-9]{1,9})\]|([^<>\[\]\s][^<>\r\n]*))>")
_COUNT = re.compile(r"\{\s*([0-9]{1,9})\s*(,?)\s*([0-9]{1,9})?\s*\}")
_HEXADECIMAL = {"x": 2, "u": 4, "U": 8}  # digits of an escape
_ESCAPES = {"t": "\t", "r": "\r", "n": "\n", "\\": "\\", '"': '"', "[": "[", "]": "]", "-": "-"}
_REPEATS = "*+?"
_ANY = "(?s:.)"
_MOST_TERMINALS = 20_000


@dataclass(frozen=True, slots=True)
class _Text:
    """A text: a regular expression for each of its characters."""

    characters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Token:
    """A token of the vocabulary, as Lark has it."""

    lark: str


@dataclass(frozen=True, slots=True)
class _Reference:
    """A reference to a rule."""

    name: str


@dataclass(frozen=True, slots=True)
class _Repeat:
    """A repeated node."""

    node: _Node
    times: str


@dataclass(frozen=True, slots=True)
class _Choice:
    """Alternatives, each of them a sequence of nodes."""

    sequences: tuple[tuple[_Node, ...], ...]


_Node: TypeAlias = _Text | _Token | _Reference | _Repeat | _Choice


def gbnf_to_lark(text: str) -> str:
    """Return a grammar in Lark's syntax that matches the same texts.

    Args:
        text: the grammar in GBNF, with the rule ``root``.

    Raises:
        ValueError: it is not a grammar; the message names the line.
    """
    rules = _Parser(text).rules()
    if "root" not in rules:
        raise ValueError("the rule root is missing")
    return _Writer(rules).grammar()


class _Parser:
    """Parses a grammar.

    Args:
        text: the grammar.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def rules(self) -> dict[str, _Choice]:
        """Return all rules by name; of rules with the same name the last."""
        rules = {}
        self._skip(_LINES)
        while self._at < len(self._text):
            name = self._match(_NAME, "the name of a rule")[0]
            self._skip(_SPACE)
            if not self._text.startswith("::=", self._at):
                self._fail("::= is expected")
            self._at += 3
            self._skip(_LINES)
            rules[name] = self._choice(_SPACE)
            if self._next not in ("", "\r", "\n"):
                self._fail("the end of the rule is expected")
            self._skip(_LINES)
        return rules

    @property
    def _next(self) -> str:
        return self._text[self._at : self._at + 1]

    def _choice(self, space: re.Pattern[str]) -> _Choice:
        sequences = [self._sequence(space)]
        while self._next == "|":
            self._at += 1
            self._skip(_LINES)
            sequences.append(self._sequence(space))
        return _Choice(tuple(sequences))

    def _sequence(self, space: re.Pattern[str]) -> tuple[_Node, ...]:
        nodes: list[_Node] = []
        while (node := self._node()) is not None:
            self._skip(space)
            while times := self._times():
                node = _Repeat(node, times)
                self._skip(space)
            nodes.append(node)
        return tuple(nodes)

    def _node(self) -> _Node | None:
        sign = self._next
        if sign == '"':
            return self._literal()
        if sign == "[":
            return self._class()
        if sign == ".":
            self._at += 1
            return _Text((_ANY,))
        if sign == "(":
            self._at += 1
            self._skip(_LINES)
            inner = self._choice(_LINES)
            if self._next != ")":
                self._fail(") is expected")
            self._at += 1
            return inner
        if sign and sign in "<!":
            negated, number, name = self._match(_TOKEN, "a token, <[ID]> or <name>").groups()
            if negated and not number:
                self._fail("a token that is excluded needs its id: !<[ID]>")
            return _Token(f"<{name}>" if name else f"<[{'^' if negated else ''}{number}]>")
        found = _NAME.match(self._text, self._at)
        if found is None:
            return None
        self._at = found.end()
        return _Reference(found[0])

    def _times(self) -> str:
        """Return how often the node before is repeated, as Lark has it; nothing if it is not."""
        if self._next and self._next in _REPEATS:
            self._at += 1
            return self._text[self._at - 1]
        if self._next != "{":
            return ""
        least, comma, most = self._match(_COUNT, "{m}, {m,} or {m,n}").groups()
        if most is not None and (not comma or int(most) < int(least)):
            self._fail("{m,n} needs m to be at most n")
        return f"{{{least},{most or ''}}}" if comma else f"{{{least}}}"

    def _literal(self) -> _Text:
        self._at += 1
        characters = []
        while self._next != '"':
            characters.append(self._character())
        self._at += 1
        return _Text(tuple(map(_escaped, characters)))

    def _class(self) -> _Text:
        self._at += 1
        negated = self._next == "^"
        self._at += negated
        ranges = []
        while self._next != "]":
            first = last = self._character()
            if self._next == "-" and self._text[self._at + 1 : self._at + 2] != "]":
                self._at += 1
                last = self._character()
            if last < first:
                self._fail("a range of characters ends before it starts")
            ranges.append(_escaped(first) if first == last else f"{_escaped(first)}-{_escaped(last)}")
        self._at += 1
        if not ranges:
            if not negated:
                self._fail("[] matches no character")
            return _Text((_ANY,))
        return _Text((f"[{'^' if negated else ''}{''.join(ranges)}]",))

    def _character(self) -> str:
        sign = self._next
        if not sign:
            self._fail("the end is not expected here")
        self._at += 1
        if sign != "\\":
            return sign
        kind = self._next
        self._at += 1
        if kind in _ESCAPES:
            return _ESCAPES[kind]
        digits = self._text[self._at : self._at + _HEXADECIMAL.get(kind, 0)]
        if not re.fullmatch("[0-9a-fA-F]{2,8}", digits) or len(digits) != _HEXADECIMAL[kind]:
            self._fail('an escape is \\t, \\r, \\n, \\\\, \\", \\[, \\], \\-, \\xHH, \\uHHHH or \\UHHHHHHHH')
        self._at += len(digits)
        code = int(digits, 16)
        if code > 0x10FFFF or 0xD800 <= code <= 0xDFFF:
            self._fail("an escape is not a character")
        return chr(code)

    def _skip(self, space: re.Pattern[str]) -> None:
        found = space.match(self._text, self._at)
        self._at = found.end() if found else self._at

    def _match(self, pattern: re.Pattern[str], expected: str) -> re.Match[str]:
        found = pattern.match(self._text, self._at)
        if found is None:
            self._fail(f"{expected} is expected")
        self._at = found.end()
        return found

    def _fail(self, message: str) -> NoReturn:
        raise ValueError(f"line {self._text.count(chr(10), 0, self._at) + 1}: {message}")


def _escaped(character: str) -> str:
    return f"\\u{{{ord(character):x}}}"


class _Writer:
    """Writes a grammar in Lark's syntax.

    Args:
        rules: the rules by name.
    """

    def __init__(self, rules: dict[str, _Choice]) -> None:
        self._rules = rules
        self._numbers = {name: number for number, name in enumerate(rules)}
        self._finite: dict[str, bool] = {}
        self._is_terminal = self._is_plain(_Reference("root"))

    def grammar(self) -> str:
        """Return the rules in Lark's syntax.

        Raises:
            ValueError: a rule is missing, or there are too many characters for terminals of their own.
        """
        size = sum(map(_size, self._rules.values()))
        if size > _MOST_TERMINALS and not self._is_terminal:
            raise ValueError(f"{size} characters in rules that refer to themselves; the limit is {_MOST_TERMINALS}")
        lines = [f"{self._name(name)}: {self._write(rule)}" for name, rule in self._rules.items()]
        return "\n".join([f"start: {self._name('root')}", *lines])

    def _name(self, rule: str) -> str:
        if rule not in self._rules:
            raise ValueError(f"the rule {rule} is missing")
        return f"{'R' if self._is_terminal else 'r'}{self._numbers[rule]}"

    def _is_plain(self, node: _Node | tuple[_Node, ...]) -> bool:
        """Return whether a node, or a sequence of nodes, needs no rule that refers to itself, and no token."""
        if isinstance(node, _Reference):
            if node.name not in self._finite:
                self._finite[node.name] = False  # while it is asked for
                rule = self._rules.get(node.name)
                self._finite[node.name] = rule is None or self._is_plain(rule)
            return self._finite[node.name]
        if isinstance(node, _Repeat):
            return self._is_plain(node.node)
        inner = node if isinstance(node, tuple) else node.sequences if isinstance(node, _Choice) else ()
        return not isinstance(node, _Token) and all(map(self._is_plain, inner))

    def _write(self, node: _Node | tuple[_Node, ...]) -> str:
        if isinstance(node, tuple):
            return " ".join(map(self._write, node)) or '""'
        if isinstance(node, _Text):
            pieces = ["".join(node.characters)] if self._is_terminal else node.characters
            return " ".join(f"/{piece}/" for piece in pieces if piece) or '""'
        if isinstance(node, _Token):
            return node.lark
        if isinstance(node, _Reference):
            return self._name(node.name)
        if isinstance(node, _Repeat):
            return f"({self._write(node.node)}){node.times}"
        return f"({' | '.join(map(self._write, node.sequences))})"


def _size(node: _Node | tuple[_Node, ...]) -> int:
    """Return the number of characters in a node."""
    if isinstance(node, _Repeat):
        return _size(node.node)
    inner = node if isinstance(node, tuple) else node.sequences if isinstance(node, _Choice) else ()
    return len(node.characters) if isinstance(node, _Text) else sum(map(_size, inner))
