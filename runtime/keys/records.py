"""Generates keys, and parses and writes their records.

An API key is ``wsk_``, 27 random characters (160 bits) and 6 of checksum, all base62. With the prefix and the CRC-32 a
secret scanner can recognise a key, and a client a mistyped one, without calling the service (as with GitHub's tokens).
Only the SHA-256 of an API key is stored. A slow hash would add nothing: slow hashes are for passwords, which can be
guessed; trying 2^160 keys is infeasible at any speed, and each request would pay for it. Of a signing key the secret
itself is stored, because both sides compute with it (RFC 2104).

The records are JSON objects with blanks or line breaks between them. Free of I/O; no error message repeats a value,
because it may be a secret.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
import zlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final, NoReturn

from runtime.types import Caller

PREFIX: Final = "wsk_"
MAX_FILE_BYTES: Final = 1_048_576
"""The largest file of records in bytes: some 5000 keys, which take 0.1 s to read."""

_SHA256 = sha256()  # copied for each use, because OpenSSL 3 looks up the algorithm for each new object: 1 us
_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_RANDOM, _CHECK = 27, 6  # characters: 62^27 > 2^160, 62^6 > 2^32
_SECRET_BYTES = 32  # the length of the hash's output (RFC 2104 section 3)

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SCOPE = re.compile(r"[a-z0-9_]{1,64}|\*")
_HEX = re.compile(r"[0-9a-fA-F]{64}")
_HARMLESS = re.compile(r"[a-z0-9_]{1,32}")  # field names that an error may repeat; no key looks like this
_BLANKS = re.compile(r"[ \t\r\n]*")
_LAST_SECOND = 253_402_300_799  # of the year 9999, the last that ``datetime`` supports


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """The stored record of a key.

    Args:
        caller: the caller that the key authenticates: id, name, scopes and limits.
        created: the creation time, Unix time in seconds.
        expires: the Unix time in seconds from which the key is invalid; None for never.
        digest: the SHA-256 of an API key; b"" for a signing key.
        secret: the secret of a signing key; b"" for an API key.
    """

    caller: Caller
    created: float
    expires: float | None
    digest: bytes = field(default=b"", repr=False)
    secret: bytes = field(default=b"", repr=False)

    def expired(self, now: float) -> bool:
        """Return whether the key is expired at that Unix time."""
        return self.expires is not None and now >= self.expires

    def line(self) -> str:
        """Return the record as one line of JSON, as ``parse_records`` reads it."""
        caller = self.caller
        limits = {name: getattr(caller, name) for name in _LIMITS if getattr(caller, name) is not None}
        kept = {"hmac_secret": base64.b64encode(self.secret).decode()} if self.secret else {"sha256": self.digest.hex()}
        about = {"id": caller.id, "name": caller.name, "scopes": sorted(caller.scopes)}
        return json.dumps(about | {"created": self.created, "expires": self.expires} | limits | kept)


def new_key() -> str:
    """Generate an API key."""
    body = PREFIX + _base62(secrets.randbelow(62**_RANDOM), _RANDOM)
    return body + _checksum(body)


def new_secret() -> bytes:
    """Generate the secret of a signing key (32 bytes)."""
    return secrets.token_bytes(_SECRET_BYTES)


def new_id() -> str:
    """Generate a key id."""
    return f"k_{secrets.token_hex(8)}"


def digest(key: str) -> bytes:
    """Return the SHA-256 of an API key; accepts any text, even one that no header can carry."""
    hasher = _SHA256.copy()
    hasher.update(key.encode("utf-8", "surrogatepass"))
    return hasher.digest()


def well_formed(key: str) -> bool:
    """Return whether a text has the form of an API key and a correct checksum."""
    has_form = len(key) == len(PREFIX) + _RANDOM + _CHECK and key.isascii() and key.startswith(PREFIX)
    return has_form and key[-_CHECK:] == _checksum(key[:-_CHECK])


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(body.encode()), _CHECK)


def _base62(number: int, width: int) -> str:
    text = ""
    for _ in range(width):
        number, digit = divmod(number, 62)
        text = _DIGITS[digit] + text
    return text


def parse_records(text: str, scopes: Collection[str] = ()) -> list[KeyRecord]:
    """Parse the records in a text, in order.

    Args:
        text: JSON objects with blanks or line breaks between them.
        scopes: all known scopes; if empty, every name is accepted.

    Raises:
        ValueError: a record is invalid; the message gives its number, counted from 1, and the field.
    """
    decoder = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_refuse)
    records: list[KeyRecord] = []
    position = _end_of_blanks(text, 0)
    while position < len(text):
        where = f"record {len(records) + 1}"
        try:
            fields, position = decoder.raw_decode(text, position)
            if not isinstance(fields, dict):
                raise ValueError("must be a JSON object, as warmstart keys create prints it")
            records.append(_record(fields, scopes))
        except json.JSONDecodeError as error:
            raise ValueError(f"{where} is not JSON (line {error.lineno}, column {error.colno})") from None
        except RecursionError:
            raise ValueError(f"{where} is nested too deeply") from None
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        position = _end_of_blanks(text, position)
    check_distinct(records)
    return records


def check_distinct(records: Sequence[KeyRecord]) -> None:
    """Check that no two records have the same id or the same key, because the order would then decide between them.

    Raises:
        ValueError: two records collide; the message gives their ids.
    """
    ids, digests = set[str](), dict[bytes, str]()
    for record in records:
        if record.caller.id in ids:
            raise ValueError(f"id: {record.caller.id} occurs twice")
        ids.add(record.caller.id)
        if record.digest and (other := digests.setdefault(record.digest, record.caller.id)) != record.caller.id:
            raise ValueError(f"sha256: {other} and {record.caller.id} have the same key")


def _end_of_blanks(text: str, position: int) -> int:
    blanks = _BLANKS.match(text, position)
    return position if blanks is None else blanks.end()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise ValueError(f"{_shown(name)}: occurs twice")
        fields[name] = value
    return fields


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _shown(name: str) -> str:
    return name if _HARMLESS.fullmatch(name) else "a field"


def _record(fields: dict[str, Any], scopes: Collection[str]) -> KeyRecord:
    for name, value in fields.items():
        if name not in _RULES:
            raise ValueError(f"{_shown(name)}: is not a field of a record")
        is_valid, description = _RULES[name]
        if not is_valid(value):
            raise ValueError(f"{name}: must be {description}")
    for name in ("id", "name", "scopes", "created", "expires"):
        if name not in fields:
            raise ValueError(f"{name}: is missing")
    if ("sha256" in fields) == ("hmac_secret" in fields):
        raise ValueError("sha256: a record must have either this or hmac_secret")
    if scopes and (unknown := sorted(set(fields["scopes"]) - set(scopes))):
        raise ValueError(f"scopes: there is no {unknown[0]}; there are {', '.join(sorted(scopes))}")
    caller = Caller(
        fields["id"], fields["name"], frozenset(fields["scopes"]), *(fields.get(limit) for limit in _LIMITS)
    )
    return KeyRecord(
        caller,
        fields["created"],
        fields["expires"],
        bytes.fromhex(fields.get("sha256", "")),
        _secret(fields["hmac_secret"]) or b"" if "hmac_secret" in fields else b"",
    )


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 1 <= len(value) <= 100 and value.isprintable() and value == value.strip()


def _are_scopes(value: Any) -> bool:
    if not isinstance(value, list) or not 1 <= len(value) <= 100:
        return False
    return all(isinstance(scope, str) and _SCOPE.fullmatch(scope) for scope in value) and len(set(value)) == len(value)


def _is_time(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= _LAST_SECOND


def _is_limit(maximum: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= maximum


def _matches(pattern: re.Pattern[str]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and pattern.fullmatch(value) is not None


def _secret(value: Any) -> bytes | None:
    """Decode the base64 secret of a signing key; None if it is invalid or not 32 to 1024 bytes long."""
    try:
        secret = base64.b64decode(value, validate=True) if isinstance(value, str) else b""
    except ValueError:
        return None
    return secret if _SECRET_BYTES <= len(secret) <= 1024 else None


_LIMITS = ("requests_per_minute", "tokens_per_minute")
_RULES: Final[dict[str, tuple[Callable[[Any], bool], str]]] = {
    "id": (_matches(_ID), "1 to 64 characters of A-Z a-z 0-9 . _ -"),
    "name": (_is_name, "1 to 100 printable characters, without blanks at either end"),
    "scopes": (_are_scopes, "a list of 1 to 100 different operations, * or admin"),
    "created": (_is_time, "a Unix time in seconds"),
    "expires": (lambda value: value is None or _is_time(value), "a Unix time in seconds, or null"),
    "requests_per_minute": (_is_limit(10_000_000), "a whole number from 0 to 10000000"),
    "tokens_per_minute": (_is_limit(10**9), "a whole number from 0 to 1000000000"),
    "sha256": (_matches(_HEX), "64 hexadecimal digits"),
    "hmac_secret": (lambda value: _secret(value) is not None, f"base64 of {_SECRET_BYTES} to 1024 bytes"),
}
