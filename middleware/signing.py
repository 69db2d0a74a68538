"""Checks request signatures: RFC 9421 with ``hmac-sha256``, and RFC 9530 for the body (see ``runtime/signatures``).

A signature covers ``"@method" "@authority" "@path" "@query"``, and ``"content-digest"`` where there is a body; other
header fields if the client likes. ``created``, ``expires``, ``nonce``, ``keyid`` and ``tag="warmstart"`` are all there.
It is good for ``SIGNING_WINDOW_SECONDS`` at most, once, for the authority that it names: behind a proxy that changes
``Host``, set ``SIGNING_AUTHORITY``.

What is wrong is told, for whoever writes a client; but not whether it is the key or the signature. Failures count like
wrong keys: past the limit a wrong signature gets 429, a good one works all the same.
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
# RFC 9421 section 5.1: what a client that knows how would have to do.
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
    """Middleware that raises InvalidSignature, InsufficientScope, RateLimited or NoncesUnavailable.

    It sets ``CALLER`` where no API key has. Its place is in front of what reads bodies: it reads one itself, as soon as
    it knows whose it is.

    Args:
        app: at its end the connections to Redis are closed.
        settings: those of signing.
        keys: those that are good.
        access: which routes need which scope.
        failures: of each address, shared with what checks keys.
        read_body: gives a request's body, or raises what is answered to one that is late or too large.

    Raises:
        SettingsError: the URL of Redis is none.
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
            _log.warning("no good signature: client %s: %s", request[CLIENT_IP], error)
            raise InvalidSignature(f"the signature is not valid here: {error}", challenge=_CHALLENGE) from None
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


def ask_for_signature(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """For ``header_signal``: the answer to a wrong signature says what one is like."""
    if request.get(REASON) == InvalidSignature.code and response.status == InvalidSignature.status:
        response.headers["Accept-Signature"] = _ACCEPTED
