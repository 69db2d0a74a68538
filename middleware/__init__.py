"""The edge: everything between the socket and the handlers, put together in one place."""

from __future__ import annotations

from aiohttp import web

from middleware.access_log import access_log_middleware
from middleware.client_ip import client_ip_middleware
from middleware.errors import errors_middleware
from middleware.ip_allowlist import ip_allowlist_middleware
from middleware.receiving import body_deadline_middleware, close_late
from middleware.request_id import request_id_middleware, set_request_id_header
from runtime.settings import Settings


def install(app: web.Application, settings: Settings) -> None:
    """Add all middlewares to an application, outermost first."""
    app.middlewares.extend(
        [
            request_id_middleware,  # first: every line logged below carries the id
            access_log_middleware,  # sees every answer, the refused ones too
            errors_middleware,  # renders what anything below raises
            client_ip_middleware(settings.trusted_proxies, settings.client_ip_header, settings.trust_unix_peers),
            ip_allowlist_middleware(settings.allowed_ips, settings.disable_ip_restriction),  # by the address above
            body_deadline_middleware(settings.body_timeout_seconds),  # nobody unknown is waited for
        ]
    )
    app.on_response_prepare.append(set_request_id_header)
    app.on_response_prepare.append(close_late)
