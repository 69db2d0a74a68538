"""Parses the text of environment variables into setting values, and formats the values for display."""

from __future__ import annotations

import json
import re
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

from pydantic import SecretStr

_SEPARATORS = re.compile(r"[\s,]+")


def words(value: Any) -> Any:
    """Split a list setting: ``"a, b c"`` -> ``["a", "b", "c"]``; items with blanks or commas need a JSON array.

    Args:
        value: the text; a value that is not a string is returned unchanged.

    Raises:
        ValueError: the text begins with ``[`` and is not a JSON array of strings.
    """
    if not isinstance(value, str):
        return value
    if not value.startswith("["):
        return list(filter(None, _SEPARATORS.split(value)))
    try:
        items = json.loads(value)
    except (ValueError, RecursionError):
        items = None
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise ValueError(f'{value!r} is not a JSON array of strings such as ["a", "b c"]')
    return items


def bare_host(value: str) -> str:
    """Remove the brackets that URLs put around IPv6 addresses: ``"[::1]"`` -> ``"::1"``; other hosts are unchanged.

    Raises:
        ValueError: the brackets are not closed or do not contain an IPv6 address.
    """
    if not value.startswith("["):
        return value
    try:
        if not value.endswith("]"):
            raise ValueError
        return str(IPv6Address(value[1:-1]))
    except ValueError:
        raise ValueError(f"{value!r} is not an IPv6 address in brackets; PORT holds the port") from None


def expanded(path: Path) -> Path:
    """Replace ``~`` in a path by the home directory.

    Raises:
        ValueError: there is no home directory, as for a user without an entry in the system's user database.
    """
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError(f"no home directory is known for {str(path)!r}; set HOME, or give the whole path") from None


def shown(value: object) -> str:
    """Format a setting's value as it would be written in the environment, with secrets masked."""
    if isinstance(value, SecretStr):
        return "********" if value.get_secret_value() else ""
    if value is None:
        return ""
    if isinstance(value, tuple):
        texts = [str(item) for item in value]
        return json.dumps(texts) if any(map(_SEPARATORS.search, texts)) else ",".join(texts)
    return str(value).lower() if isinstance(value, bool) else str(value)
