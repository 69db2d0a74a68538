"""Signs requests to a Warmstart service, for any HTTP client.

With httpx or requests a ``Signer`` is the ``auth``::

    httpx.post(url, json=payload, auth=Signer("k_...", secret))
    requests.post(url, json=payload, auth=Signer("k_...", secret))

For other clients, ``Signer.headers`` returns the header fields to send. A signature is valid once: a request that is
sent again, by a retry or after a redirect, must be signed again.

This module needs the standard library only. Sources: RFC 9421, RFC 9530.
"""

from __future__ import annotations

import secrets
import time
from base64 import b64encode
from binascii import a2b_base64
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from runtime.signatures import SignatureError
from runtime.signatures.digest import content_digest
from runtime.signatures.message import ALGORITHM, SignedMessage, mac_of, normalised, signature_base, signature_text

_COVERED: Final = ("@method", "@authority", "@path", "@query")
_TAG: Final = "warmstart"
_LABEL: Final = "sig"
_NONCE_BYTES = 16

Request = TypeVar("Request", bound=Any)
"""An ``httpx.Request`` or a ``requests.PreparedRequest``."""


class Signer:
    """Signs requests with a signing key; an ``auth`` object for httpx and requests. Thread-safe.

    Args:
        key_id: the id of a signing key, as ``warmstart keys create --signing`` prints it.
        secret: that key's secret: bytes, or the base64 text that is printed.
        seconds: the lifetime of a signature in seconds; at most the service's SIGNING_WINDOW_SECONDS.
        cover: names of header fields to sign besides the required components.
        clock: Unix time in seconds.

    Raises:
        SignatureError: the secret is empty, or text that is not base64.
    """

    def __init__(
        self,
        key_id: str,
        secret: bytes | str,
        *,
        seconds: int = 60,
        cover: Sequence[str] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._key_id = key_id
        self._secret = _secret(secret)
        self._seconds = seconds
        self._cover = tuple(name.lower() for name in cover)
        self._clock = clock

    def __call__(self, request: Request) -> Request:
        """Sign a request of httpx or requests in place, and return it.

        Raises:
            SignatureError: the body is a stream, or a part of the request cannot be signed.
        """
        headers = request.headers
        signed = self.headers(request.method, str(request.url), _body(request), headers)
        headers.update(signed)
        return request

    def headers(
        self, method: str, url: str, body: bytes | str | None = None, headers: Mapping[str, Any] | None = None
    ) -> dict[str, str]:
        """Return the header fields to add to a request: ``Signature-Input``, ``Signature``, perhaps ``Content-Digest``.

        Args:
            method: the method, as it will be sent.
            url: the full URL, percent-encoded; a fragment is ignored.
            body: the body, as it will be sent; text is encoded as UTF-8.
            headers: the request's header fields that are to be signed, and ``Host`` if it differs from the URL's.

        Raises:
            SignatureError: the URL is invalid, or a header field to sign is missing.
        """
        content = body.encode() if isinstance(body, str) else body or b""
        fields = {
            name.lower(): value if isinstance(value, str) else value.decode()  # requests accepts both
            for name, value in (headers or {}).items()
        }
        added = {"Content-Digest": content_digest(content)} if content or "content-digest" in fields else {}
        fields |= {name.lower(): value for name, value in added.items()}
        if not url.isascii() or not url.isprintable() or " " in url:
            raise SignatureError(f"{url!a} has characters that must be percent-encoded")
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise SignatureError(f"{url!r} is not http://HOST/PATH or https://HOST/PATH")
        target = url.partition("#")[0].partition("//")[2][len(parts.netloc) :]
        message = SignedMessage(
            method=method,
            target=target if target.startswith("/") else f"/{target}",
            scheme=parts.scheme,
            authority=normalised(fields.get("host") or parts.netloc.rpartition("@")[2], parts.scheme),
            fields=lambda name: [fields[name]] if name in fields else [],
        )
        covered = [*_COVERED, *(["content-digest"] if added else []), *self._cover]
        created = int(self._clock())
        text = signature_text(
            covered,
            {
                "created": created,
                "expires": created + self._seconds,
                "nonce": secrets.token_urlsafe(_NONCE_BYTES),
                "keyid": self._key_id,
                "alg": ALGORITHM,
                "tag": _TAG,
            },
        )
        mac = mac_of(signature_base(message, covered, text), self._secret)
        return added | {"Signature-Input": f"{_LABEL}={text}", "Signature": f"{_LABEL}=:{b64encode(mac).decode()}:"}


def _secret(secret: bytes | str) -> bytes:
    if isinstance(secret, str):
        try:
            secret = a2b_base64(secret.strip(), strict_mode=True)
        except ValueError:
            raise SignatureError("the secret is not base64") from None
    if not secret:
        raise SignatureError("the secret is empty")
    return secret


def _body(request: Any) -> bytes | str | None:
    """Return the body that will be sent: ``content`` in httpx, ``body`` in requests."""
    try:
        body = request.body if hasattr(request, "body") else request.content
    except RuntimeError:  # httpx.RequestNotRead
        body = ...
    if body is None or isinstance(body, bytes | str):
        return body
    raise SignatureError("a streamed body cannot be signed; pass the complete body as bytes or text")
