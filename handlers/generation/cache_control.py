"""Parses a request's Cache-Control directives (RFC 9111 section 5.2.1)."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

# A name and an optional value, quoted or not (section 5.2); text between directives is skipped. An unclosed quote takes
# the rest of the text. The pattern never backtracks over a quote, because the text is untrusted.
_DIRECTIVE = re.compile(
    r'([^\s,;="]+)(?:\s*=\s*(?:"((?:[^"\\]|\\.)*+)"|([^\s,"]*)))?|"(?:[^"\\]|\\.)*+(?:"|\\?\Z)', re.DOTALL
)


@dataclass(frozen=True, slots=True)
class CacheControl:
    """The directives that the response cache supports.

    Args:
        store: whether the response cache may be used at all, to read or to store; False with no-store.
        reuse: whether a cached response may be returned; False with no-cache.
        max_age: the greatest age of a cached response, in seconds.
    """

    store: bool = True
    reuse: bool = True
    max_age: float = math.inf

    @classmethod
    def parse(cls, text: str | None) -> CacheControl:
        """Parse directives. Unknown ones are ignored; the smallest of several max-age applies; an invalid max-age is 0.

        Args:
            text: the directives, separated by commas; None for none.
        """
        store, reuse, max_age = True, True, math.inf
        for name, quoted, plain in _DIRECTIVE.findall(text or ""):
            match name.lower():
                case "no-store":
                    store = False
                case "no-cache":
                    reuse = False
                case "max-age":
                    value = quoted or plain
                    max_age = min(max_age, float(value) if value.isascii() and value.isdigit() else 0)
        return cls(store, reuse, max_age)
