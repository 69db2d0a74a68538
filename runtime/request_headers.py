"""Checks of request headers that the HTTP service and the cloud functions share."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

from runtime.errors import UnsupportedMediaType


def check_content_encoding(lines: Sequence[str]) -> None:
    """Raise UnsupportedMediaType for a compressed body: bodies are never decompressed.

    Args:
        lines: the values of all ``Content-Encoding`` fields; empty if there is none.

    Raises:
        UnsupportedMediaType: a coding other than ``identity`` is named (RFC 9110 section 8.4).
    """
    codings = ",".join(lines).lower().split(",")
    if any(coding.strip(" \t") not in ("", "identity") for coding in codings):
        raise UnsupportedMediaType("send the body without Content-Encoding; compressed bodies are not accepted")


def credentials_hash(authorization: Sequence[str], api_key: Sequence[str]) -> str:
    """Return an id of an unauthenticated caller: a hash of the credentials that it sent; "" if it sent none.

    Args:
        authorization: the values of all ``Authorization`` fields.
        api_key: the values of all ``X-API-Key`` fields.
    """
    sent = [list(authorization), list(api_key)]
    return sha256(repr(sent).encode()).hexdigest() if any(sent) else ""
