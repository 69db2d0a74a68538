"""What a request says about kept answers (RFC 9111 section 5.2.1)."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

# A name, and perhaps a value, quoted or not (section 5.2); what lies between directives is passed over. A quote that is
# never closed holds all the rest. Nothing is read a second time, however it is quoted: the text is a stranger's.
_DIRECTIVE = re.compile(
    r'([^\s,;="]+)(?:\s*=\s*(?:"((?:[^"\\]|\\.)*+)"|([^\s,"]*)))?|"(?:[^"\\]|\\.)*+(?:"|\\?\Z)', re.DOTALL
)


@dataclass(frozen=True, slots=True)
class CacheControl:
    """The directives that are of use here.

    Args:
        store: whether the answer may be kept, and a kept one read at all (not with no-store).
        reuse: whether an answer that is there already will do (not with no-cache).
        max_age: of a kept answer, in seconds.
    """

    store: bool = True
    reuse: bool = True
    max_age: float = math.inf

    @classmethod
    def parse(cls, text: str | None) -> CacheControl:
        """Read directives. Unknown ones are ignored; of several max-age the least holds; one that is no number is 0.

        Args:
            text: separated by commas; None for none.
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
