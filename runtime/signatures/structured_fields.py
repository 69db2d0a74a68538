"""Parses and serialises structured fields (RFC 9651): the dictionaries, inner lists and parameters of signatures.

The parser is strict, and linear in the text's length. It refuses some input that the RFC allows but no client sends on
purpose: duplicate keys (of which the last would count, section 3.2), and the types that no field here uses: decimals,
dates and display strings.
"""

from __future__ import annotations

import re
from base64 import b64encode
from binascii import a2b_base64
from collections.abc import Mapping
from typing import NamedTuple

from runtime.signatures import SignatureError

MAX_CHARS = 8192
MAX_MEMBERS = 32
"""The largest number of members of a dictionary or inner list, and of parameters of each item."""
_SHOWN = 60  # characters of a key that an error repeats


class SfToken(str):
    """A token: a word without quotes (section 3.3.4)."""

    __slots__ = ()


BareItem = str | SfToken | int | bytes | bool
Parameters = Mapping[str, BareItem]


class Item(NamedTuple):
    """An item: a value with its parameters (section 3.3)."""

    value: BareItem
    params: Parameters


class InnerList(NamedTuple):
    """An inner list: items in parentheses, with parameters of the list itself (section 3.1.1)."""

    items: tuple[Item, ...]
    params: Parameters


# Possessive quantifiers, so that no text is scanned twice. Exactly one group matches; its name is the item's type.
_KEY = r"[a-z*][a-z0-9_.*-]*+"
_BARE = r"""(?:
      "(?P<string> [\ !#-\[\]-~]*+ (?: \\["\\] [\ !#-\[\]-~]*+ )*+ )"
    | (?P<integer> -?[0-9]{1,15}+ ) (?![0-9.])
    | :(?P<bytes> [A-Za-z0-9+/=]*+ ):
    | \?(?P<boolean> [01] )
    | (?P<token> [A-Za-z*][!#$%&'*+.^_`|~0-9A-Za-z:/-]*+ )
)"""
_item = re.compile(_BARE, re.VERBOSE | re.ASCII).match
_parameter = re.compile(rf";\ *+(?P<key>{_KEY})(?:={_BARE})?", re.VERBOSE | re.ASCII).match
_member = re.compile(rf"(?P<key>{_KEY})(?P<value>=)?").match
_comma = re.compile(r"[ \t]*+,[ \t]*+").match
_end = re.compile(r"[ \t]*+\Z").match


def parse_dictionary(name: str, text: str) -> dict[str, Item | InnerList]:
    """Parse a dictionary (section 4.2.2).

    Args:
        name: the field's name, for error messages.
        text: the field's value; several lines are joined with ``", "`` (RFC 9110 section 5.3).

    Raises:
        SignatureError: the value is malformed, too large, or has a duplicate key.
    """
    if len(text) > MAX_CHARS:
        raise SignatureError(f"{name} is longer than {MAX_CHARS} characters")
    members: dict[str, Item | InnerList] = {}
    at = _skip(text, 0)
    if at == len(text):
        return members
    while True:
        found = _member(text, at)
        if found is None:
            raise _malformed(name, at)
        key, at = found["key"], found.end()
        if key in members:
            raise SignatureError(f"{name} has {key[:_SHOWN]!r} twice")
        if found["value"] is None:
            params, at = _parameters(name, text, at)
            members[key] = Item(True, params)
        elif text[at : at + 1] == "(":
            members[key], at = _inner_list(name, text, at + 1)
        else:
            members[key], at = _parsed_item(name, text, at)
        if _end(text, at):
            return members
        separator = _comma(text, at)
        if separator is None:
            raise _malformed(name, at)
        if len(members) == MAX_MEMBERS:
            raise _too_many(name)
        at = separator.end()


def serialise(member: Item | InnerList) -> str:
    """Return the canonical text of an item or inner list (section 4.1).

    Raises:
        SignatureError: a string has characters that are not printable ASCII.
    """
    if isinstance(member, InnerList):
        text = "(" + " ".join([serialise(item) for item in member.items]) + ")"
    else:
        text = _bare(member.value)
    for key, value in member.params.items():
        text += f";{key}" if value is True else f";{key}={_bare(value)}"
    return text


def _bare(value: BareItem) -> str:
    if isinstance(value, SfToken):
        return value
    if isinstance(value, str):
        if not value.isascii() or not value.isprintable():
            raise SignatureError(f"{value!a} has characters that are not printable ASCII")
        if '"' in value or "\\" in value:
            value = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{value}"'
    if isinstance(value, bytes):
        return f":{b64encode(value).decode()}:"
    return f"?{value:d}" if isinstance(value, bool) else str(value)


def _inner_list(name: str, text: str, at: int) -> tuple[InnerList, int]:
    items: list[Item] = []
    while True:
        at = _skip(text, at)
        if text[at : at + 1] == ")":
            params, at = _parameters(name, text, at + 1)
            return InnerList(tuple(items), params), at
        if len(items) == MAX_MEMBERS:
            raise _too_many(name)
        item, at = _parsed_item(name, text, at)
        items.append(item)
        if text[at : at + 1] not in (" ", ")"):
            raise _malformed(name, at)


def _parsed_item(name: str, text: str, at: int) -> tuple[Item, int]:
    found = _item(text, at)
    if found is None:
        raise _malformed(name, at)
    params, end = _parameters(name, text, found.end())
    return Item(_value(name, found), params), end


def _parameters(name: str, text: str, at: int) -> tuple[dict[str, BareItem], int]:
    params: dict[str, BareItem] = {}
    while (found := _parameter(text, at)) is not None:
        key = found["key"]
        if key in params:
            raise SignatureError(f"{name} has the parameter {key[:_SHOWN]!r} twice")
        if len(params) == MAX_MEMBERS:
            raise _too_many(name)
        params[key] = True if found.lastgroup == "key" else _value(name, found)
        at = found.end()
    return params, at


def _value(name: str, found: re.Match[str]) -> BareItem:
    kind = str(found.lastgroup)
    text = found[kind]
    if kind == "string":
        return re.sub(r"\\(.)", r"\1", text) if "\\" in text else text
    if kind == "integer":
        return int(text)
    if kind == "bytes":
        try:
            return a2b_base64(text, strict_mode=True)
        except ValueError:
            raise SignatureError(f"{name} has bytes that are not base64") from None
    return SfToken(text) if kind == "token" else text == "1"


def _skip(text: str, at: int) -> int:
    while text.startswith(" ", at):
        at += 1
    return at


def _malformed(name: str, at: int) -> SignatureError:
    return SignatureError(f"{name} cannot be read from character {at + 1} on")


def _too_many(name: str) -> SignatureError:
    return SignatureError(f"{name} has more than {MAX_MEMBERS} members in one place")
