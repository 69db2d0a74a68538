"""The edge: everything between the socket and the handlers, put together in one place."""

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
from middleware.signing import ask_for_signature, signing_middleware
from runtime.audit.chain import AuditKeys
from runtime.audit.log import AuditLog
from runtime.keys.ring import KeyRing
from runtime.rate_limits.factory import open_limits
from runtime.settings import Settings
from runtime.telemetry.metrics import Metrics


def install(app: web.Application, settings: Settings, access: Access, metrics: Metrics | None = None) -> None:
    """Add all middlewares to an application, outermost first.

    Args:
        app: as it is being put together.
        settings: decide which there are.
        access: which handlers need what; filled while routes are added.
        metrics: count what is refused and what fails; new ones if left out.

    Raises:
        SettingsError: the keys' records, or ``REDIS_URL``, are wrong.
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
            headers.append(ask_for_signature)
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
        edge = RateLimit(settings, access, limits, metrics.limits_away.inc)
        limit = [edge.rate_limit]
        headers.append(edge.set_headers)
        app.on_cleanup.append(lambda _: limits.close())
    app.middlewares.extend(
        [
            request_id_middleware,  # first: every line logged below carries the id
            access_log_middleware,  # sees every answer, the refused ones too
            *audit,  # likewise
            errors_middleware,  # renders what anything below raises
            client_ip_middleware(settings.trusted_proxies, settings.client_ip_header, settings.trust_unix_peers),
            forwarded_middleware(  # scheme and host, as the client named them: what is signed, and who hears of HSTS
                settings.trusted_proxies,
                settings.client_ip_header,
                settings.trust_unix_peers,
                enabled=settings.forwarded_origin,
            ),
            ip_allowlist_middleware(settings.allowed_ips, settings.disable_ip_restriction),  # by the address above
            *auth,  # by a header, before anything is read for nobody
            *signing,  # reads the body of a good signature itself
            body_deadline_middleware(settings.body_timeout_seconds),  # nobody unknown is waited for
            *limit,  # last, because it counts by who the two above have found it is
        ]
    )
    headers += [set_request_id_header, set_security_headers, set_connection_headers]
    app.on_response_prepare.append(header_signal(*headers))
