"""Computes and verifies ``Content-Digest`` (RFC 9530 section 2)."""

from __future__ import annotations

import hashlib
import hmac
from binascii import b2a_base64
from typing import Final

from runtime.signatures import SignatureError
from runtime.signatures.structured_fields import Item, parse_dictionary

_SHA256 = hashlib.sha256()  # copied for each use, because OpenSSL 3 looks up the algorithm for each new object: 1 us

# Section 5: the two active algorithms. All others that are registered are insecure or not cryptographic.
_ALGORITHMS: Final = {"sha-256": hashlib.sha256, "sha-512": hashlib.sha512}


def content_digest(body: bytes) -> str:
    """Return the ``Content-Digest`` value of a body, with SHA-256."""
    digest = _SHA256.copy()
    digest.update(body)
    return f"sha-256=:{b2a_base64(digest.digest(), newline=False).decode()}:"


def verify_digest(value: str, body: bytes) -> None:
    """Verify a body against ``Content-Digest``.

    Args:
        value: the field's value; several lines are joined with ``", "``.
        body: the body as sent, with its content coding, without its transfer coding.

    Raises:
        SignatureError: the field is malformed, has no supported algorithm, or a supported one has another digest.
    """
    if value == content_digest(body):  # the usual form
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
