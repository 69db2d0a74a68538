"""Decodes JSON from untrusted clients strictly, as RFC 8259 defines it; every error is an ``InvalidRequest``."""

from __future__ import annotations

import json
from itertools import accumulate
from typing import Any, NoReturn

from runtime.errors import InvalidRequest

DEFAULT_MAX_DEPTH = 100
"""The default nesting limit, far below the depth at which Python's decoder runs out of stack."""

MAX_PARTS = 20_000
"""Maximum number of arrays, objects and commas in one text. A megabyte can hold fifty times as many; to decode,
validate and reject those would block the event loop for 0.1 s and more, in calls that cannot be interrupted."""

_NOT_STRUCTURE = bytes(set(range(256)) - set(b'[]{},"'))
_DEPTH_CHANGE = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


def loads(data: bytes | str, max_depth: int = DEFAULT_MAX_DEPTH) -> Any:
    """Decode one JSON text.

    Args:
        data: UTF-8 bytes, or a string. A leading byte order mark is skipped (RFC 8259 section 8.1).
        max_depth: the nesting limit of arrays and objects.

    Returns:
        The decoded value.

    Raises:
        InvalidRequest: it is not JSON, not UTF-8, nested too deeply, has more than ``MAX_PARTS`` parts, or contains
            NaN, Infinity or a number with too many digits. Python's decoder accepts some of these and raises errors
            of other types for the rest.
    """
    try:
        if isinstance(data, str):
            text, data = data, data.encode("utf-8", "surrogatepass")
        else:
            text = data.decode("utf-8")
        text = text.removeprefix("\ufeff")
        # Most texts have fewer brackets than the depth limit, and counting them is cheap.
        brackets = data.count(b"[") + data.count(b"{")
        if brackets > max_depth or brackets + data.count(b",") > MAX_PARTS:
            marks = _structure(data)
            if len(marks) > MAX_PARTS and marks.count(b"[") + marks.count(b"{") + marks.count(b",") > MAX_PARTS:
                raise InvalidRequest(f"the body has more than {MAX_PARTS} arrays, objects and commas")
            if _depth(marks) > max_depth:
                raise InvalidRequest(f"the body is nested deeper than {max_depth} levels (MAX_JSON_DEPTH)")
        return _DECODER.decode(text)
    except UnicodeDecodeError:
        raise InvalidRequest("the body is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not JSON: {error.msg} at line {error.lineno} column {error.colno}") from None
    except ValueError:  # int() rejects thousands of digits
        raise InvalidRequest("the body has a number with too many digits") from None


def _depth(marks: bytes) -> int:
    """Return the nesting depth of a JSON text; for other text, at least the depth a decoder reaches before it fails.

    Args:
        marks: the text's structure, see ``_structure``.
    """
    return max(accumulate(map(_DEPTH_CHANGE.__getitem__, marks.replace(b",", b""))), default=0)


def _structure(data: bytes) -> bytes:
    """Return the brackets and commas of a JSON text that are outside its strings.

    Escaped backslashes are removed first, then escaped quotes, so that each quote left begins or ends a string; then
    every other part between quotes is a string and is dropped. These are a few calls over the whole text, at C speed.
    """
    data = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    return b"".join(data.translate(None, _NOT_STRUCTURE).split(b'"')[::2])


def _refuse(constant: str) -> NoReturn:
    raise InvalidRequest(f"the body contains {constant}, which is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse)  # json.loads makes one per call, which takes as long as decoding
