"""What the edge has found out about a request, and which routes ask for a credential.

Middlewares do not know each other; what one tells those behind it stands on the request, under the names below.
"""

from __future__ import annotations

import logging
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
    """Which handlers need what. Filled while routes are added, read by the route that matched, never by the path.

    Six questions are asked for each request, and so they look at what ``match_info.handler`` finds in two calls.

    Args:
        operations: handler -> name of its operation.
        open: handlers that answer without any credential.
        admin: operations that need the scope ``admin``.
        scopes: all that a key may have.
    """

    operations: dict[Handler, str] = field(default_factory=dict)
    open: set[Handler] = field(default_factory=set)
    admin: frozenset[str] = frozenset()
    scopes: frozenset[str] = frozenset()

    def operation(self, request: web.Request) -> str | None:
        """The operation that the request is for; None for what is none, such as a path that does not exist."""
        return self.operations.get(request.match_info._route._handler)

    def is_open(self, request: web.Request) -> bool:
        """Whether it needs no credential: probes, and CORS preflights, which browsers send without one."""
        if request.match_info._route._handler in self.open:
            return True
        preflight = request.method == hdrs.METH_OPTIONS and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers
        return preflight and request.match_info.http_exception is None

    def check(self, request: web.Request, caller: Caller, challenge: str) -> None:
        """Refuse a caller whose scopes do not hold the request's operation, and log it.

        Args:
            challenge: scheme and realm of its credential; ``WWW-Authenticate`` adds what is missing (RFC 6750 section
                3.1).

        Raises:
            InsufficientScope: names the scope that is missing.
        """
        operation = self.operation(request)
        if operation is None:  # what is no operation holds nothing: any caller may see that it is not there
            return
        needed = ADMIN if operation in self.admin else operation
        if needed in caller.scopes or (needed != ADMIN and ALL in caller.scopes):
            return
        _log.warning("scope missing: client %s, key %s", request[CLIENT_IP], caller.id)
        raise InsufficientScope(
            f"this key's scopes do not include {needed!r}, which {operation} needs",
            challenge=f'{challenge}, error="insufficient_scope", scope="{needed}"',
        )
