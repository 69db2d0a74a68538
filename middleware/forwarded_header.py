"""The ``Forwarded`` header field (RFC 7239) and the names of the other forwarding headers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, Literal, Protocol, get_args

Source = Literal["x-forwarded-for", "x-real-ip", "forwarded"]


SOURCES: Final[tuple[Source, ...]] = get_args(Source)


_MAX_FORWARDED = 65_536  # characters parsed at most, because Forwarded is parsed whole


# One parameter of a Forwarded element and the separator after it (RFC 7239 section 4; tokens, quoted strings and their
# escapes are RFC 9110 section 5.6). Unquoted ":", "[" and "]" are no token characters, but many proxies send them, and
# they separate nothing, so reading them is not ambiguous. Blanks around ";" are tolerated for the same reason.
_PAIR = re.compile(
    r"""[ \t]*(?:
          (?P<name>[!#$%&'*+.^_`|~0-9A-Za-z-]+)
          =(?: (?P<token>[!#$%&'*+.^_`|~0-9A-Za-z:\[\]-]+) | "(?P<quoted>(?:[^"\\\x00-\x08\x0a-\x1f\x7f]|\\[\t -~])*)" )
          [ \t]*
        )?(?P<separator>[,;]|\Z)""",
    re.VERBOSE,
)


class Headers(Protocol):
    """What is asked of the headers; ``CIMultiDict`` and its proxy offer it."""

    def getall(self, key: str, default: Sequence[str], /) -> Sequence[str]:
        """All lines of one field, in order."""
        ...
