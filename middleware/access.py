"""Access rules: which operation each route handler serves, whether it is open, and which scope a key needs for it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from middleware.request_keys import CLIENT_IP
from runtime.errors import InsufficientScope
from runtime.types import Caller

_log = logging.getLogger("warmstart.edge")


ALL, ADMIN = "*", "admin"


@dataclass(slots=True)
class Access:
    """The access rules of all handlers, filled while routes are added and looked up by matched route, never by path.

    Args:
        operations: handler -> name of its operation.
        open: handlers that answer without a credential.
        admin: names of the operations that need the scope ``admin``.
        scopes: all scopes that a key may have.
        included: operation -> another operation whose scope allows it, too.
        forms: handlers that read the body themselves if it is a form.
    """

    operations: dict[Handler, str] = field(default_factory=dict)
    open: set[Handler] = field(default_factory=set)
    admin: frozenset[str] = frozenset()
    scopes: frozenset[str] = frozenset()
    included: Mapping[str, str] = field(default_factory=dict)
    forms: set[Handler] = field(default_factory=set)

    def operation(self, request: web.Request) -> str | None:
        """Return the name of the request's operation; None if the route has none, or if no route matched."""
        return self.operations.get(request.match_info.handler)

    def is_open(self, request: web.Request) -> bool:
        """Return whether the request needs no credential: probes, and CORS preflights, which browsers send without."""
        if request.match_info.handler in self.open:
            return True
        preflight = request.method == hdrs.METH_OPTIONS and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers
        return preflight and request.match_info.http_exception is None

    def allows(self, caller: Caller, operation: str) -> bool:
        """Return whether a caller's scopes include an operation."""
        if operation in self.admin:
            return ADMIN in caller.scopes
        return not caller.scopes.isdisjoint((ALL, operation, self.included.get(operation)))

    def check(self, request: web.Request, caller: Caller, challenge: str) -> None:
        """Raise and log InsufficientScope if the caller's scopes do not include the request's operation.

        Args:
            request: the request.
            caller: the authenticated caller.
            challenge: the scheme and realm for ``WWW-Authenticate``; the error and the missing scope are appended
                (RFC 6750 section 3.1).

        Raises:
            InsufficientScope: a scope is missing; the message names it.
        """
        operation = self.operation(request)
        if operation is None:  # a route without an operation exposes nothing: any caller may get its 404
            return
        if self.allows(caller, operation):
            return
        scope = ADMIN if operation in self.admin else operation
        _log.warning("scope missing: client %s, key %s", request[CLIENT_IP], caller.id)
        raise InsufficientScope(
            f"the operation {operation} requires the scope {scope!r}, which this key does not have",
            challenge=f'{challenge}, error="insufficient_scope", scope="{scope}"',
        )
