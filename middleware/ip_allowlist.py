"""Restricts access to the client addresses in ALLOWED_IPS, on every route, including unknown paths; none is exempt.

Exempting paths would invite bypasses, because a path can be written in many ways and a URL can be rebuilt from the Host
header. A prober that must reach ``/livez`` from another network is added to the allowlist.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from middleware.request_keys import CLIENT_IP
from runtime.errors import ClientAddressDenied
from runtime.networks import Network, NetworkSet

_log = logging.getLogger("warmstart.edge")

_CACHE_SIZE = 4096  # client addresses for which the decision is cached


def ip_allowlist_middleware(allowed: Sequence[Network], disabled: bool = False) -> Middleware:
    """Return the middleware that raises ClientAddressDenied for other clients. It needs ``CLIENT_IP`` (``client_ip``).

    Args:
        allowed: the allowed networks; an empty list denies every client.
        disabled: allow every client.
    """
    is_allowed = lru_cache(_CACHE_SIZE)(NetworkSet(allowed).__contains__)

    @web.middleware
    async def ip_allowlist(request: web.Request, handler: Handler) -> web.StreamResponse:
        if disabled:
            return await handler(request)
        # If the client address middleware is missing, every request is denied.
        client = request.get(CLIENT_IP)
        if client is None or not is_allowed(client):
            _log.warning("address not allowed: peer %a, client %s", request.remote, client)
            raise ClientAddressDenied("Your address is not allowed (ALLOWED_IPS).")
        return await handler(request)

    return ip_allowlist
