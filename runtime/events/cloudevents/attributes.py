"""CloudEvents 1.0: validates an event's attributes, which come from untrusted senders.

The ``cloudevents`` package generates missing ids, accepts any value of any attribute, and does not decode percent signs
in headers; so it only gets attributes that were validated here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from hashlib import sha256
from typing import Any
from urllib.parse import quote, unquote_to_bytes

from runtime.errors import InvalidRequest, UnsupportedMediaType
from runtime.events.envelope import MAX_ID_CHARS

MAX_ATTRIBUTE_CHARS = 1024
"""The maximum length of an attribute in characters."""

_REQUIRED = ("specversion", "id", "source", "type")
_STRINGS = frozenset({*_REQUIRED, "datacontenttype", "dataschema", "subject", "time"})
_NAME = re.compile(r"[a-z0-9]{1,64}")
_NONCHARACTERS = "".join(chr(plane << 16 | low) for plane in range(17) for low in (0xFFFE, 0xFFFF))
_FORBIDDEN = re.compile(f"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef{_NONCHARACTERS}]")  # spec, "Type System"
_MEDIA_TYPE = re.compile(r"[\w.+!#$&^-]+/[\w.+!#$&^-]+", re.ASCII)
_CHARSET = re.compile(r";\s*charset\s*=\s*\"?([^\s\";]+)", re.IGNORECASE)
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", re.ASCII | re.IGNORECASE)
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))
_IN_HEADERS = _PRINTABLE.replace("%", "").replace('"', "")
_IN_IDS = _PRINTABLE.replace("%", "")


def check_attributes(given: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Validate attributes, and return them as text.

    Args:
        given: the attributes; no value is None.
        prefix: the prefix of the names in error messages: ``ce-`` in headers, ``3.`` in a batch.

    Raises:
        InvalidRequest: an attribute is missing or violates the specification; the error names it.
    """

    def wrong(name: str, what: str) -> InvalidRequest:
        name = ascii(name[:64])[1:-1]
        return InvalidRequest(f"{prefix}{name}: {what}", param=prefix + name if prefix.endswith(".") else name)

    for name in _REQUIRED:
        if name not in given:
            raise wrong(name, "missing")
    attributes: dict[str, str] = {}
    for name, value in given.items():
        if not _NAME.fullmatch(name):
            raise wrong(name, "the name must have 1 to 64 lower-case letters and digits")
        if isinstance(value, int) and name not in _STRINGS:
            if not -(2**31) <= value < 2**31:
                raise wrong(name, "must be a whole number of 32 bits")
            value = str(value).lower()  # bool is a subclass of int
        if not isinstance(value, str):
            raise wrong(
                name, "must be a string" if name in _STRINGS else "must be a string, a boolean or a whole number"
            )
        if not value and name in _STRINGS:
            raise wrong(name, "must not be empty")
        if len(value) > MAX_ATTRIBUTE_CHARS:
            raise wrong(name, f"must have at most {MAX_ATTRIBUTE_CHARS} characters")
        if _FORBIDDEN.search(value):
            raise wrong(name, "must not contain control characters, surrogates or noncharacters")
        attributes[name] = value
    if attributes["specversion"] != "1.0":  # the package also accepts 0.3
        raise wrong("specversion", "only 1.0 is supported")
    if not _MEDIA_TYPE.fullmatch(media_type(attributes.get("datacontenttype", "any/any"))):
        raise wrong("datacontenttype", "must be a media type")
    if "time" in attributes and timestamp(attributes["time"]) is None:
        raise wrong("time", NO_TIME)
    return attributes


NO_TIME = "must be a time of RFC 3339, for example 2030-01-31T12:00:00Z"


def timestamp(text: str) -> float | None:
    """Return the Unix time in seconds of an RFC 3339 time; None if the text is not one."""
    try:
        return datetime.fromisoformat(text.upper()).timestamp() if _TIME.fullmatch(text) else None
    except ValueError:
        return None


def media_type(text: str) -> str:
    """Return a content type without its parameters, in lower case."""
    return text.partition(";")[0].strip().lower()


def check_charset(text: str) -> None:
    """Check that a JSON content type names no other encoding than UTF-8.

    Raises:
        UnsupportedMediaType: it names another encoding.
    """
    charset = _CHARSET.search(text)
    if charset and charset[1].lower() not in ("utf-8", "utf8"):
        raise UnsupportedMediaType("JSON must be encoded as UTF-8 (RFC 8259 section 8.1)")


def percent_encoded(value: str) -> str:
    """Encode an attribute as a header's value (HTTP binding section 3.1.3.2)."""
    return quote(value, safe=_IN_HEADERS)


def percent_decoded(name: str, value: str) -> str:
    """Decode an attribute from a header's value: first quotes, then percent signs, once each.

    Args:
        name: the header's name, which begins with ``ce-``.
        value: the header's value, with bytes that are not UTF-8 as surrogates, as HTTP servers pass them.

    Raises:
        InvalidRequest: the value is not UTF-8.
    """
    if quoted := _QUOTED.fullmatch(value):
        value = re.sub(r"\\(.)", r"\1", quoted[1])
    try:
        return unquote_to_bytes(value.encode("utf-8", "surrogateescape")).decode()
    except UnicodeError:
        raise InvalidRequest(f"{name}: must be UTF-8", param=name.removeprefix("ce-")) from None


def plain_id(text: str) -> str:
    """Return an event's id in the form of an envelope's: short, ASCII and without blanks, yet unique.

    Characters outside printable ASCII and ``%`` are percent-encoded, and an id that gets too long is replaced by its
    hash.
    """
    plain = quote(text, safe=_IN_IDS)
    return plain if len(plain) <= MAX_ID_CHARS else f"%sha256:{sha256(text.encode()).hexdigest()}"
