"""middleware.response_headers: what sets header fields of answers is called for each, in its order."""

from __future__ import annotations

from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from middleware.response_headers import header_signal


async def test_all_in_their_order() -> None:
    """Each sees what those before it have set."""

    def first(request: web.BaseRequest, response: web.StreamResponse) -> None:
        response.headers["X-Seen"] = request.path

    def second(request: web.BaseRequest, response: web.StreamResponse) -> None:
        response.headers["X-Seen"] += " twice"

    response = web.Response()
    await header_signal(first, second)(make_mocked_request("GET", "/a"), response)
    assert response.headers["X-Seen"] == "/a twice"
