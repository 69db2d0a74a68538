"""Lets in only the addresses that are allowed. Every route is gated, those that answer 404 too; no path is exempt.

A path can be written in many ways and a URL can be rebuilt from the Host header; an address cannot, so there is nothing
here to get around. Whoever must reach ``/livez`` from elsewhere is added to the allowlist.
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

_REMEMBERED = 4096  # clients


def ip_allowlist_middleware(allowed: Sequence[Network], disabled: bool = False) -> Middleware:
    """Middleware that raises ClientAddressDenied for a client outside ``allowed``. It comes after client_ip.

    Args:
        allowed: the networks let in; none at all means nobody.
        disabled: let everybody in.
    """
    inside = lru_cache(_REMEMBERED)(NetworkSet(allowed).__contains__)

    @web.middleware
    async def ip_allowlist(request: web.Request, handler: Handler) -> web.StreamResponse:
        if disabled:
            return await handler(request)
        # Without the client address middleware nobody has an address, and nobody gets in.
        client = request.get(CLIENT_IP)
        if client is None or not inside(client):
            _log.warning("address not allowed: peer %a, client %s", request.remote, client)
            raise ClientAddressDenied("Your address is not allowed here.")
        return await handler(request)

    return ip_allowlist
