"""The HTTP middlewares, and ``install``, which adds them to an application in the right order."""

from __future__ import annotations

from functools import partial

from aiohttp import web

from middleware.access import Access
from middleware.access_log import access_log_middleware
from middleware.audit import audit_context, audit_middleware, keys_recorder
from middleware.auth import auth_middleware
from middleware.auth_failures import Failures
from middleware.body import body_deadline_middleware, read_body, set_connection_headers
from middleware.client_ip import client_ip_middleware
from middleware.errors import errors_middleware
from middleware.forwarded import forwarded_middleware
from middleware.ip_allowlist import ip_allowlist_middleware
from middleware.rate_limit import RateLimit
from middleware.request_id import request_id_middleware, set_request_id_header
from middleware.request_keys import AUDIT, REFUSALS
from middleware.response_headers import SetHeaders, header_signal
from middleware.security_headers import set_security_headers
from middleware.signing import set_accept_signature, signing_middleware
from runtime.audit.chain import AuditKeys
from runtime.audit.log import AuditLog
from runtime.keys.ring import KeyRing
from runtime.rate_limits.factory import open_limits
from runtime.settings import Settings
from runtime.telemetry.metrics import Metrics


def install(app: web.Application, settings: Settings, access: Access, metrics: Metrics | None = None) -> None:
    """Add all middlewares to an application, outermost first.

    Args:
        app: the application, before it starts.
        settings: the settings, which decide which middlewares are installed.
        access: the access rules of the handlers; may be filled later, while routes are added.
        metrics: the metrics that count refused and failed requests; new ones if left out.

    Raises:
        SettingsError: the API key records or ``REDIS_URL`` are invalid.
    """
    metrics = metrics or Metrics()
    app[REFUSALS] = metrics.refusals
    failures = Failures(settings.auth_failures_per_minute)
    auth, signing = [], []
    headers: list[SetHeaders] = []
    if settings.needs_credentials:
        keys = KeyRing(settings.api_keys.get_secret_value(), settings.api_keys_file, scopes=access.scopes)
        auth = [auth_middleware(keys, access, failures, signing=settings.request_signing)]
        if settings.request_signing != "off":
            read = partial(read_body, seconds=settings.body_timeout_seconds)
            signing = [signing_middleware(app, settings, keys, access, failures, read)]
            headers.append(set_accept_signature)
    audit = []
    if settings.audit_log is not None:
        audit_keys = AuditKeys.derive(settings.audit_key.get_secret_value())
        log = AuditLog(settings.audit_log, audit_keys, settings.audit_max_bytes, metrics.audit_errors.inc)
        audit = [audit_middleware(log, audit_keys.prompt, access, required=settings.audit_required)]
        app[AUDIT] = log, audit_keys.prompt
        app.cleanup_ctx.append(audit_context(log))
        if auth:
            keys.on_change = keys_recorder(log)
    limit = []
    if settings.rate_limit_enabled:
        limits = open_limits(settings)
        metrics.limited_clients.set_function(limits.__len__)
        edge = RateLimit(settings, access, limits, metrics.limits_unavailable.inc)
        limit = [edge.rate_limit]
        headers.append(edge.set_headers)
        app.on_cleanup.append(lambda _: limits.close())
    app.middlewares.extend(
        [
            request_id_middleware,  # first: every line logged below carries the id
            access_log_middleware,  # sees every response, those to refused requests too
            *audit,  # likewise
            errors_middleware,  # renders the errors that anything below raises
            client_ip_middleware(settings.trusted_proxies, settings.client_ip_header, settings.trust_unix_peers),
            # The scheme and host that the client used: signatures cover them, and HSTS depends on the scheme.
            forwarded_middleware(settings.client_ip_header, enabled=settings.forwarded_origin),
            ip_allowlist_middleware(settings.allowed_ips, settings.disable_ip_restriction),  # by the address above
            *auth,  # by a header, before the body is read, so that unauthenticated requests cost no waiting
            *signing,  # reads the body itself once the signature is valid
            body_deadline_middleware(settings.body_timeout_seconds, access),  # only for authenticated clients
            *limit,  # last, because it counts by the caller that authentication or the signature has identified
        ]
    )
    headers += [set_request_id_header, set_security_headers, set_connection_headers]
    app.on_response_prepare.append(header_signal(*headers))
