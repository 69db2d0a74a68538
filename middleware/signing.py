"""Verifies request signatures: RFC 9421 with ``hmac-sha256``, and RFC 9530 for the body (see ``runtime/signatures``).

A signature covers ``"@method" "@authority" "@path" "@query"``, ``"content-digest"`` if there is a body, and optionally
other header fields. The parameters ``created``, ``expires``, ``nonce``, ``keyid`` and ``tag="warmstart"`` are required.
A signature is valid once, for ``SIGNING_WINDOW_SECONDS`` at most, and for the authority that it covers: behind a proxy
that changes ``Host``, set ``SIGNING_AUTHORITY``.

The error message says what is wrong, to help client authors, but not whether the key or the signature is. Failures
count like invalid keys: above the limit an invalid signature gets 429, while a valid one still works.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from multidict import istr

from middleware.access import Access
from middleware.auth_failures import Failures
from middleware.request_keys import CALLER, CLIENT_IP, ORIGIN, REASON
from runtime.errors import InvalidSignature
from runtime.keys.ring import KeyRing
from runtime.settings import Settings
from runtime.signatures import SignatureError
from runtime.signatures.message import ALGORITHM, SignedMessage, normalised
from runtime.signatures.nonces import MemoryNonces, Nonces, RedisNonces
from runtime.signatures.verifier import COVERED, TAG, Verifier
from runtime.storage.redis import SharedRedis

_log = logging.getLogger("warmstart.edge")

_INPUT: Final = istr("Signature-Input")
_SIGNATURE: Final = istr("Signature")

_CHALLENGE = 'Signature realm="warmstart"'
# The value of Accept-Signature (RFC 9421 section 5.1): the components and parameters that a signature must have.
_ACCEPTED = (
    "sig=(" + " ".join(f'"{name}"' for name in (*COVERED, "content-digest")) + ")"
    f';created;expires;nonce;keyid;alg="{ALGORITHM}";tag="{TAG}"'
)


def signing_middleware(
    app: web.Application,
    settings: Settings,
    keys: KeyRing,
    access: Access,
    failures: Failures,
    read_body: Callable[[web.Request], Awaitable[bytes]],
) -> Middleware:
    """Return the middleware that verifies signatures and sets ``CALLER`` unless an API key has.

    It raises InvalidSignature, InsufficientScope, RateLimited or NoncesUnavailable. It comes before the middleware that
    reads bodies, because it reads a body itself, and only once the signature is valid.

    Args:
        app: the application; its cleanup closes the connections to Redis.
        settings: the settings of signing.
        keys: the valid keys.
        access: the access rules: which routes are open, and which need which scope.
        failures: the failure counts per address, shared with the API key check.
        read_body: reads a request's body, or raises the error for one that is late or too large.

    Raises:
        SettingsError: ``REDIS_URL`` is invalid.
    """
    verifier = Verifier(keys.signing, _nonces(app, settings), settings.signing_window_seconds)
    required = settings.request_signing == "required"
    authority = settings.signing_authority
    pinned = {scheme: normalised(authority, scheme) for scheme in ("http", "https")} if authority else None

    @web.middleware
    async def signing(request: web.Request, handler: Handler) -> web.StreamResponse:
        headers = request.headers
        signed = required or _INPUT in headers or _SIGNATURE in headers
        if not signed or access.is_open(request):
            return await handler(request)
        scheme, host = request[ORIGIN]
        signed_for = pinned[scheme] if pinned else normalised(host, scheme)
        message = SignedMessage(
            request.method, request.raw_path, scheme, signed_for, partial(headers.getall, default=())
        )
        try:
            caller = await verifier.verify(message, partial(read_body, request) if request.body_exists else None)
        except SignatureError as error:
            failures.check(request)
            failures.failed(request)
            _log.warning("invalid signature: client %s: %s", request[CLIENT_IP], error)
            raise InvalidSignature(f"the signature is not valid: {error}", challenge=_CHALLENGE) from None
        if CALLER not in request:
            request[CALLER] = caller
        access.check(request, caller, _CHALLENGE)
        return await handler(request)

    return signing


def _nonces(app: web.Application, settings: Settings) -> Nonces:
    if settings.signing_nonces == "memory":
        return MemoryNonces()
    redis = SharedRedis(settings.redis_url.get_secret_value())

    async def close(app: web.Application) -> None:
        await redis.close()

    app.on_cleanup.append(close)
    return RedisNonces(redis, settings.signing_window_seconds)


def set_accept_signature(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Set ``Accept-Signature`` on the response to an invalid signature (for ``header_signal``)."""
    if request.get(REASON) == InvalidSignature.code and response.status == InvalidSignature.status:
        response.headers["Accept-Signature"] = _ACCEPTED
