"""API key authentication: ``Authorization: Bearer KEY`` or ``X-API-Key: KEY`` (RFC 9110 section 11, RFC 6750).

A request carries one key; ambiguous credentials are refused, and keys in the query string are ignored (RFC 6750 section
2.3). Every invalid key gets the same response, whether it is unknown, expired or revoked; the log tells them apart.

Failures are counted per client address. Above the limit an invalid key gets 429 instead of 401, and nothing is logged.
A valid key still works: many clients may share one address, and none of them can lock out the others. A lookup costs
one hash, and 160 random bits cannot be guessed, so the limit only protects the log and its alarms.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final, Literal, NoReturn, Protocol

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware
from multidict import istr

from middleware.access import Access
from middleware.auth_failures import Failures
from middleware.request_keys import CALLER, CLIENT_IP
from runtime.errors import Unauthenticated
from runtime.keys.ring import KeyRing

_log = logging.getLogger("warmstart.edge")

_API_KEY: Final = istr("X-API-Key")
_SIGNATURE_INPUT: Final = istr("Signature-Input")

Signing = Literal["off", "accepted", "required"]

_CHALLENGE = 'Bearer realm="warmstart"'
_INVALID = f'{_CHALLENGE}, error="invalid_token"'
_HOW = "send one API key, as Authorization: Bearer KEY or as X-API-Key: KEY"


class CredentialHeaders(Protocol):
    """The part of the headers' interface that is used here; ``CIMultiDict`` and ``CIMultiDictProxy`` implement it."""

    def getall(self, key: str, default: Sequence[str], /) -> Sequence[str]:
        """Return all values of one field, in order."""
        ...


def api_key_of(headers: CredentialHeaders) -> str | None:
    """Return the API key in a request's headers; None if they hold no credential at all.

    Raises:
        ValueError: the credentials are ambiguous or of another kind; the message says why without repeating them.
    """
    lines, plain = headers.getall(hdrs.AUTHORIZATION, ()), headers.getall(_API_KEY, ())
    if not lines and not plain:
        return None
    if len(lines) > 1 or len(plain) > 1:
        raise ValueError("more than one credential")
    key = plain[0].strip(" \t") if plain else None
    if lines:
        scheme, _, token = lines[0].partition(" ")
        token = token.strip(" ")
        if scheme.lower() != "bearer":
            raise ValueError("a scheme other than Bearer")
        if key is not None and key != token:
            raise ValueError("more than one credential")
        key = token
    if not key:
        raise ValueError("an empty API key")
    return key


def auth_middleware(keys: KeyRing, access: Access, failures: Failures, *, signing: Signing) -> Middleware:
    """Return the middleware that sets ``CALLER``, or raises Unauthenticated, InsufficientScope or RateLimited.

    It reads no body, so that an unauthenticated client cannot make the service wait.

    Args:
        keys: the valid keys.
        access: the access rules: which routes are open, and which need which scope.
        failures: the failure counts per address, shared with the signature check.
        signing: the setting REQUEST_SIGNING. A request without a key is passed on to the signature check if it has a
            signature (``accepted``) or in any case (``required``).
    """

    def refuse(request: web.Request, reason: str) -> NoReturn:
        failures.check(request)
        failures.failed(request)
        _log.warning("invalid credential: client %s: %s", request[CLIENT_IP], reason)
        raise Unauthenticated(f"the credentials are not valid; {_HOW}", challenge=_INVALID)

    missing = _CHALLENGE if signing == "off" else f'{_CHALLENGE}, Signature realm="warmstart"'

    @web.middleware
    async def auth(request: web.Request, handler: Handler) -> web.StreamResponse:
        if access.is_open(request):
            return await handler(request)
        try:
            key = api_key_of(request.headers)
        except ValueError as error:
            refuse(request, str(error))
        if key is None:
            if signing == "required" or (signing == "accepted" and _SIGNATURE_INPUT in request.headers):
                return await handler(request)
            raise Unauthenticated(f"a credential is required; {_HOW}", challenge=missing)
        caller = keys.bearer(key)
        if caller is None:
            refuse(request, keys.invalid_reason(key))
        request[CALLER] = caller
        access.check(request, caller, _CHALLENGE)
        return await handler(request)

    return auth
