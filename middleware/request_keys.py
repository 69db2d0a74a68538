"""The typed keys under which middlewares share data on a request (``web.RequestKey``) or application (``web.AppKey``).

A middleware passes its results to the later ones and to the handlers through these keys.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from aiohttp import web
from prometheus_client import Counter

from runtime.audit.log import AuditLog
from runtime.error_response import ErrorForm
from runtime.networks import Address
from runtime.types import Caller

REFUSALS: Final = web.AppKey("refusals", Counter)
"""The counter of error responses, by error code."""


PAYLOAD: Final = web.RequestKey[Any]("payload")
"""The request's payload, as the operation's handler receives it."""


AUDIT: Final = web.AppKey[tuple[AuditLog, bytes]]("audit", tuple)
"""The application's audit log and the key for its prompt hashes, for events that do not come through HTTP."""


REQUEST_ID: web.RequestKey[str] = web.RequestKey("request_id", str)


CONTINUE: Final = web.RequestKey[bool]("continue")
"""Whether the client waits for ``100 Continue`` before it sends the body."""


LAST: Final = web.RequestKey[bool]("last")
"""Whether the connection is closed after the response to this request."""


class Origin(NamedTuple):
    """The scheme and authority that the client used.

    Args:
        scheme: ``http`` or ``https``.
        authority: the host and optional port as the client sent them, in lower case.
    """

    scheme: str
    authority: str


ORIGIN: Final = web.RequestKey[Origin]("origin")


CLIENT_IP: Final = web.RequestKey[Address]("client_ip")


CLIENT_TEXT: Final = web.RequestKey[str]("client_text")
"""The client's address as text, for logs."""


PEER: Final = web.RequestKey["str | None"]("peer")
"""The address of the connection's peer: the one from a PROXY header if there was one; None for a unix socket."""


PEER_TRUSTED: Final = web.RequestKey[bool]("peer_trusted")
"""Whether the peer is a trusted proxy, whose forwarding headers are used."""


CALLER: Final = web.RequestKey[Caller]("caller")
"""The authenticated caller; absent if no credential was required or sent."""


REASON: Final = web.RequestKey[str]("reason")
"""The code of the error in the response."""


CLIENT_CERTIFICATE: Final = web.RequestKey[str]("client_certificate")
"""The subject of the client's certificate (RFC 4514), if TLS_CLIENT_CA_FILE requires one."""

ERROR_FORM: Final = web.AppKey[Callable[[str], ErrorForm]]("error_form")
"""Returns the form of errors on a path (``handlers.api.routes.error_form``); if unset, all are problem details."""
