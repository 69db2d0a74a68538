"""Parses the ``Forwarded`` header field (RFC 7239), and defines the names of all forwarding headers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, Literal, Protocol, get_args

Source = Literal["x-forwarded-for", "x-real-ip", "forwarded"]


SOURCES: Final[tuple[Source, ...]] = get_args(Source)


MAX_CHARS: Final = 65_536
"""The longest ``Forwarded`` value of a request in characters; it is limited because it is parsed whole."""


# One parameter of a Forwarded element and the separator after it (RFC 7239 section 4; tokens, quoted strings and their
# escapes are RFC 9110 section 5.6). Unquoted ":", "[" and "]" are not token characters, but many proxies send them, and
# they are not separators, so accepting them is not ambiguous. Blanks around ";" are tolerated for the same reason.
_PAIR = re.compile(
    r"""[ \t]*(?:
          (?P<name>[!#$%&'*+.^_`|~0-9A-Za-z-]+)
          =(?: (?P<token>[!#$%&'*+.^_`|~0-9A-Za-z:\[\]-]+) | "(?P<quoted>(?:[^"\\\x00-\x08\x0a-\x1f\x7f]|\\[\t -~])*)" )
          [ \t]*
        )?(?P<separator>[,;]|\Z)""",
    re.VERBOSE,
)
_ESCAPED = re.compile(r"\\(.)")


class Headers(Protocol):
    """The part of the headers' interface that is used here; ``CIMultiDict`` and ``CIMultiDictProxy`` implement it."""

    def getall(self, key: str, default: Sequence[str], /) -> Sequence[str]:
        """Return all values of one field, in order."""
        ...


class MalformedForwarded(ValueError):
    """A ``Forwarded`` line that does not follow the grammar.

    Args:
        reason: the fault, as a phrase.
        rest: the part of the line that starts at the fault.
    """

    def __init__(self, reason: str, rest: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.rest = rest


def elements(line: str) -> list[dict[str, str]]:
    """Parse one line into its elements, from the left: lower-case parameter name -> value without quotes.

    The line is parsed whole, because a comma inside quotes is not a separator, and whether a position is inside quotes
    can only be decided from the left.

    Args:
        line: the field's value; one line, because a quoted string never spans two.

    Raises:
        MalformedForwarded: the line breaks the grammar, or a parameter occurs twice in one element (section 4).
    """
    parsed: list[dict[str, str]] = [{}]
    position, separator = 0, ";"
    while separator:
        pair = _PAIR.match(line, position)
        if pair is None:
            raise MalformedForwarded("Forwarded is malformed", line[position:])
        if pair["name"]:
            name = pair["name"].lower()
            if name in parsed[-1]:
                raise MalformedForwarded("a parameter twice in one Forwarded element", line[position:])
            parsed[-1][name] = pair["token"] or _ESCAPED.sub(r"\1", pair["quoted"])
        position, separator = pair.end(), pair["separator"]
        if separator == ",":
            parsed.append({})
    return parsed
