"""Sets the security headers of every response: CSP, HSTS, nosniff, framing and referrer policies.

Source: OWASP's REST Security and HTTP Headers cheat sheets. A handler may set its own ``Cache-Control``, and the pages
in ``views/`` have their own content security policy. CORS is not affected: Cross-Origin-Resource-Policy governs only
requests made without it (Fetch section 3.8).
"""

from __future__ import annotations

from collections.abc import MutableMapping

from aiohttp import web
from multidict import istr

from middleware.request_keys import ORIGIN

_CACHE, _POLICY = istr("Cache-Control"), istr("Content-Security-Policy")  # a handler's own value takes precedence
_NOTHING = "default-src 'none'; frame-ancestors 'none'"
_FIXED: dict[str, str] = {
    istr("Cross-Origin-Resource-Policy"): "same-origin",
    istr("Permissions-Policy"): "camera=(), geolocation=(), microphone=()",
    istr("Referrer-Policy"): "no-referrer",
    istr("Server"): "warmstart",  # aiohttp's default names itself and Python, with their versions
    istr("X-Content-Type-Options"): "nosniff",
    istr("X-Frame-Options"): "DENY",
}
_HSTS = istr("Strict-Transport-Security")
_YEAR = "max-age=31536000"  # without includeSubDomains: other services below this name may not support HTTPS


def secure(headers: MutableMapping[str, str], *, https: bool) -> None:
    """Add the security headers to a response's headers.

    Args:
        headers: the response's headers.
        https: whether the client used TLS; only then is Strict-Transport-Security sent (RFC 6797 section 7.2).
    """
    headers.setdefault(_CACHE, "no-store")
    headers.setdefault(_POLICY, _NOTHING)
    headers.update(_FIXED)
    if https:
        headers[_HSTS] = _YEAR


def set_security_headers(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Add the security headers to a response (for ``header_signal``), streams and errors included."""
    origin = request.get(ORIGIN)
    secure(response.headers, https=request.secure if origin is None else origin.scheme == "https")
