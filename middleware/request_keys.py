"""The keys under which middlewares store what they learned about a request (``aiohttp.web.RequestKey``) or the
application.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from aiohttp import web
from prometheus_client import Counter

from runtime.audit.log import AuditLog
from runtime.networks import Address
from runtime.types import Caller

REFUSALS: Final = web.AppKey("refusals", Counter)
"""Counts by code what is answered with an error."""


PAYLOAD: Final = web.RequestKey[Any]("payload")
"""The request's JSON, as the handler gets it."""


AUDIT: Final = web.AppKey[tuple[AuditLog, bytes]]("audit", tuple)
"""The application's audit log, and the key of its prompt hashes: for what comes another way."""


REQUEST_ID: web.RequestKey[str] = web.RequestKey("request_id", str)


CONTINUE: Final = web.RequestKey[bool]("continue")
"""The client waits for 100 Continue before it sends the body."""


LAST: Final = web.RequestKey[bool]("last")
"""The connection ends with the answer to this request."""


class Origin(NamedTuple):
    """Where the client sent its request.

    Args:
        scheme: ``http`` or ``https``.
        authority: host and port as the client named them, in lower case.
    """

    scheme: str
    authority: str


ORIGIN: Final = web.RequestKey[Origin]("origin")


CLIENT_IP: Final = web.RequestKey[Address]("client_ip")


CLIENT_TEXT: Final = web.RequestKey[str]("client_text")
"""The same as text, for logs."""


PEER: Final = web.RequestKey["str | None"]("peer")
"""Who opened the connection; where a PROXY header said so, from the start. None for a unix socket."""


CALLER: Final = web.RequestKey[Caller]("caller")
"""Who sent it; absent where no credential was asked for or shown."""


REASON: Final = web.RequestKey[str]("reason")
"""The code of the error that it was answered with."""


CLIENT_CERTIFICATE: Final = web.RequestKey[str]("client_certificate")
"""The subject of the client's certificate (RFC 4514), where TLS_CLIENT_CA_FILE asks for one."""

SPEAKS_OPENAI: Final = web.AppKey[Callable[[str], bool]]("speaks_openai")
"""Whether errors on a path have OpenAI's shape (``handlers.api.routes.speaks_openai``); without it none have."""
