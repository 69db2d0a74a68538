"""Header fields that answers get just before they are sent, whoever made them: streams and errors too."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web

SetHeaders = Callable[[web.BaseRequest, web.StreamResponse], None]
"""Sets the header fields of a request's answer."""


def header_signal(*setters: SetHeaders) -> Callable[[web.BaseRequest, web.StreamResponse], Awaitable[None]]:
    """One ``on_response_prepare`` signal of several, because each that aiohttp awaits costs a microsecond.

    Args:
        setters: called in this order.
    """

    async def set_headers(request: web.BaseRequest, response: web.StreamResponse) -> None:
        for set_them in setters:
            set_them(request, response)

    return set_headers
