"""JSON as RFC 8259 has it, from strangers: every fault is an ``InvalidRequest``."""

from __future__ import annotations

import json
from itertools import accumulate
from typing import Any, NoReturn

from runtime.errors import InvalidRequest

DEPTH = 100
"""Of nesting, where no setting says otherwise: far below where Python's decoder runs out of stack."""

PARTS = 20_000
"""Most arrays, objects and commas in one text. A megabyte holds fifty times as many, and decoding, validating and
refusing those would hold up the event loop for a tenth of a second and more, in calls that cannot be interrupted."""

_DROPPED = bytes(set(range(256)) - set(b'[]{},"'))
_STEP = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


def loads(data: bytes | str, max_depth: int = DEPTH) -> Any:
    """Decode one JSON text.

    Args:
        data: UTF-8 bytes, or text. A byte order mark before it is skipped (RFC 8259 section 8.1).
        max_depth: of arrays and objects inside each other.

    Raises:
        InvalidRequest: it is not JSON, not UTF-8, nested too deep, of more than ``PARTS`` parts, or holds NaN,
            Infinity or an endless number, all of which Python's decoder would let pass or fail on in ways of its own.
    """
    try:
        if isinstance(data, str):
            text, data = data, data.encode("utf-8", "surrogatepass")
        else:
            text = data.decode("utf-8")
        text = text.removeprefix("\ufeff")
        # Most texts have fewer brackets than they may have levels, and counting costs next to nothing.
        brackets = data.count(b"[") + data.count(b"{")
        if brackets > max_depth or brackets + data.count(b",") > PARTS:
            marks = _structure(data)
            if len(marks) > PARTS and marks.count(b"[") + marks.count(b"{") + marks.count(b",") > PARTS:
                raise InvalidRequest(f"the body holds more than {PARTS} arrays, objects and commas")
            if _depth(marks) > max_depth:
                raise InvalidRequest(f"the body is nested deeper than {max_depth} levels (MAX_JSON_DEPTH)")
        return _DECODER.decode(text)
    except UnicodeDecodeError:
        raise InvalidRequest("the body is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not JSON: {error.msg} at line {error.lineno} column {error.colno}") from None
    except ValueError:  # int() refuses thousands of digits
        raise InvalidRequest("the body holds a number with too many digits") from None


def depth(data: bytes) -> int:
    """How deep a JSON text is nested; of what is no JSON, at least as deep as a decoder gets before it finds out."""
    return _depth(_structure(data))


def _depth(marks: bytes) -> int:
    return max(accumulate(map(_STEP.__getitem__, marks.replace(b",", b""))), default=0)


def _structure(data: bytes) -> bytes:
    """The brackets and commas of a JSON text that are in no string.

    Escaped backslashes go first, then escaped quotes, so that each quote left begins or ends a string; then every other
    part between quotes is a string and dropped. All of it is a few calls over the whole text, at the speed of C.
    """
    data = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    return b"".join(data.translate(None, _DROPPED).split(b'"')[::2])


def _refuse(constant: str) -> NoReturn:
    raise InvalidRequest(f"the body holds {constant}, which is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse)  # json.loads would make one per call, which costs as much as a text
