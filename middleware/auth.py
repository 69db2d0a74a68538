"""Asks for an API key: ``Authorization: Bearer KEY`` or ``X-API-Key: KEY`` (RFC 9110 section 11, RFC 6750).

A request shows one key; what is ambiguous is refused, and a query string is no place for a key (RFC 6750 section 2.3).
Every wrong key gets the same answer, whether it never was, has expired or was revoked; the log tells them apart.

Failures are counted per client address. Past the limit a wrong key gets 429 instead of 401, and nothing is logged. A
good key works all the same: behind one address there may be many clients, and none of them can lock out the others. A
look-up costs a hash, and 160 random bits are not found by guessing, so the limit is there for the log and for alarms.
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
    """What is asked of the headers; ``CIMultiDict`` and its proxy offer it."""

    def getall(self, key: str, default: Sequence[str], /) -> Sequence[str]:
        """All lines of one field, in order."""
        ...


def shown_key(headers: CredentialHeaders) -> str | None:
    """The one key that a request shows; None if it shows no credential at all.

    Raises:
        ValueError: its credentials are none that are taken here; the message says why, without a word of them.
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
            raise ValueError("another scheme than Bearer")
        if key is not None and key != token:
            raise ValueError("more than one credential")
        key = token
    if not key:
        raise ValueError("an empty key")
    return key


def auth_middleware(keys: KeyRing, access: Access, failures: Failures, *, signing: Signing) -> Middleware:
    """Middleware that sets ``CALLER``, or raises Unauthenticated, InsufficientScope or RateLimited.

    It reads no body, so that nobody unknown is waited for.

    Args:
        keys: those that are good.
        access: which routes need which scope.
        failures: of each address, shared with what checks signatures.
        signing: REQUEST_SIGNING. A request without a key goes on to where signatures are checked if it has one, or
            must have one.
    """

    def refuse(request: web.Request, reason: str) -> NoReturn:
        failures.check(request)
        failures.failed(request)
        _log.warning("no good credential: client %s: %s", request[CLIENT_IP], reason)
        raise Unauthenticated(f"the credentials are not valid here; {_HOW}", challenge=_INVALID)

    nothing_shown = _CHALLENGE if signing == "off" else f'{_CHALLENGE}, Signature realm="warmstart"'

    @web.middleware
    async def auth(request: web.Request, handler: Handler) -> web.StreamResponse:
        if access.is_open(request):
            return await handler(request)
        try:
            key = shown_key(request.headers)
        except ValueError as error:
            refuse(request, str(error))
        if key is None:
            if signing == "required" or (signing == "accepted" and _SIGNATURE_INPUT in request.headers):
                return await handler(request)
            raise Unauthenticated(f"a credential is needed here; {_HOW}", challenge=nothing_shown)
        caller = keys.bearer(key)
        if caller is None:
            refuse(request, keys.why_not(key))
        request[CALLER] = caller
        access.check(request, caller, _CHALLENGE)
        return await handler(request)

    return auth
