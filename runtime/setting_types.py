"""The types of settings that need more than pydantic's own validation. A wrong value raises ValueError."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, SecretStr, ValidationInfo
from pydantic_settings import NoDecode

from runtime.networks import Network, parse_networks
from runtime.setting_values import bare_host, expanded, words


def _networks(value: Any, info: ValidationInfo) -> Any:
    name = str(info.field_name)
    return parse_networks([str(entry) for entry in words(value)], strict=name != "allowed_ips", name=name.upper())


def _redis_url(value: SecretStr) -> SecretStr:
    try:
        parts = urlsplit(value.get_secret_value())
        good = parts.scheme in ("redis", "rediss", "unix") and (parts.port or 1) > 0
    except ValueError:  # its message, and the redis client's, may contain part of the password
        good = False
    if not good:
        raise ValueError("not a URL such as redis://:PASSWORD@HOST:6379/0, with special characters as %2F")
    return value


def _origins(value: tuple[str, ...]) -> tuple[str, ...]:
    for origin in value:
        if origin != "*" and not origin.startswith(("http://", "https://")):
            raise ValueError(f"{origin!r} is not an origin such as https://app.example")
    return value


def _none_if_empty(value: Any) -> Any:
    return None if value == "" else value  # compose files and .env files leave a setting out that way


def _expanded_or_none(value: Path | None) -> Path | None:
    return expanded(value) if value else None


def _upper(value: Any) -> Any:
    return value.upper() if isinstance(value, str) else value


Networks = Annotated[tuple[Network, ...], NoDecode, BeforeValidator(_networks)]
"""IP networks; host bits are accepted in ALLOWED_IPS only."""

Strings = Annotated[tuple[str, ...], NoDecode, BeforeValidator(words)]
"""Strings separated by blanks or commas, or a JSON array of strings."""

Origins = Annotated[Strings, AfterValidator(_origins)]
"""Origins of web pages (RFC 6454), or ``*``."""

Host = Annotated[str, AfterValidator(bare_host)]
"""A host to listen on; an IPv6 address may be in brackets."""

RedisUrl = Annotated[SecretStr, AfterValidator(_redis_url)]
"""The URL of a Redis; secret because it may contain a password."""

PathSetting = Annotated[Path, AfterValidator(expanded)]
"""A path; ``~`` is expanded."""

OptionalPath = Annotated[Path | None, BeforeValidator(_none_if_empty), AfterValidator(_expanded_or_none)]
"""A path, or None for an empty value; ``~`` is expanded."""

Upper = BeforeValidator(_upper)
"""Accepts lower case for values in upper case."""
