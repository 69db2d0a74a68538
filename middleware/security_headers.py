"""The headers that tell a browser to do less with an answer than it would by itself.

Source: OWASP's REST Security and HTTP Headers cheat sheets. A handler may say itself how its answer is cached, and the
pages in ``views/`` have their own content security policy. CORS is not touched: Cross-Origin-Resource-Policy governs
only requests made without it (Fetch section 3.8).
"""

from __future__ import annotations

from collections.abc import MutableMapping

from aiohttp import web
from multidict import istr

from middleware.request_keys import ORIGIN

_CACHE, _POLICY = istr("Cache-Control"), istr("Content-Security-Policy")  # what a handler's own value goes before
_NOTHING = "default-src 'none'; frame-ancestors 'none'"
_FIXED: dict[str, str] = {
    istr("Cross-Origin-Resource-Policy"): "same-origin",
    istr("Permissions-Policy"): "camera=(), geolocation=(), microphone=()",
    istr("Referrer-Policy"): "no-referrer",
    istr("Server"): "warmstart",  # aiohttp would name itself and Python, with their versions
    istr("X-Content-Type-Options"): "nosniff",
    istr("X-Frame-Options"): "DENY",
}
_HSTS = istr("Strict-Transport-Security")
_YEAR = "max-age=31536000"  # without includeSubDomains: what else lives below this name is not ours to decide


def secure(headers: MutableMapping[str, str], *, https: bool) -> None:
    """Add them to an answer's headers.

    Args:
        headers: of the answer.
        https: the client came by TLS; only then is Strict-Transport-Security heard (RFC 6797 section 7.2).
    """
    headers.setdefault(_CACHE, "no-store")
    headers.setdefault(_POLICY, _NOTHING)
    headers.update(_FIXED)
    if https:
        headers[_HSTS] = _YEAR


def set_security_headers(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """For ``header_signal``: streams and errors carry them too."""
    origin = request.get(ORIGIN)
    secure(response.headers, https=request.secure if origin is None else origin.scheme == "https")
