"""``Content-Digest`` (RFC 9530 section 2): what a body's digest is, and whether one belongs to a body."""

from __future__ import annotations

import hashlib
import hmac
from binascii import b2a_base64
from typing import Final

from runtime.signatures import SignatureError
from runtime.signatures.structured_fields import Item, parse_dictionary

_SHA256 = hashlib.sha256()  # copied, because OpenSSL 3 looks the algorithm up at each start: a microsecond

# Section 5: the two that are active. What else is registered is insecure or not of cryptography.
_ALGORITHMS: Final = {"sha-256": hashlib.sha256, "sha-512": hashlib.sha512}


def content_digest(body: bytes) -> str:
    """The field's value for a body, by SHA-256."""
    digest = _SHA256.copy()
    digest.update(body)
    return f"sha-256=:{b2a_base64(digest.digest(), newline=False).decode()}:"


def verify_digest(value: str, body: bytes) -> None:
    """Check a body against the field.

    Args:
        value: of ``Content-Digest``; several lines are joined with ``", "``.
        body: as it was sent, with its content coding, without its transfer coding.

    Raises:
        SignatureError: the field is malformed, has no algorithm that is known, or one of those that are known differs.
    """
    if value == content_digest(body):  # as nearly everybody writes it
        return
    known = 0
    for algorithm, member in parse_dictionary("Content-Digest", value).items():
        if not isinstance(member, Item) or not isinstance(member.value, bytes):
            raise SignatureError("Content-Digest must have base64 between colons for each algorithm")
        if algorithm in _ALGORITHMS:
            known += 1
            if not hmac.compare_digest(member.value, _ALGORITHMS[algorithm](body).digest()):
                raise SignatureError(f"Content-Digest: the body has another {algorithm}")
    if not known:
        raise SignatureError("Content-Digest needs sha-256 or sha-512")
