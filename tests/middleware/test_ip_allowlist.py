"""middleware.ip_allowlist over a tiny application."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient

from middleware.client_ip import client_ip_middleware
from middleware.ip_allowlist import ip_allowlist_middleware
from runtime.errors import ClientAddressDenied
from runtime.networks import parse_networks

Client = Callable[[web.Application], Awaitable[TestClient[web.Request, web.Application]]]


@web.middleware
async def _render(request: web.Request, handler: Any) -> web.StreamResponse:
    try:
        return await handler(request)  # type: ignore[no-any-return]
    except ClientAddressDenied as error:
        return web.json_response(error.problem(), status=error.status)


async def _ok(request: web.Request) -> web.Response:
    return web.Response(text="ok")


def _app(allowed: list[str], *, disabled: bool = False, resolved: bool = True) -> web.Application:
    networks = parse_networks(allowed, strict=False, name="ALLOWED_IPS")
    trusted = parse_networks(["127.0.0.1"], strict=True, name="TRUSTED_PROXIES")
    before = [client_ip_middleware(trusted, "x-forwarded-for")] if resolved else []
    app = web.Application(middlewares=[_render, *before, ip_allowlist_middleware(networks, disabled)])
    app.router.add_get("/", _ok)
    app.router.add_get("/livez", _ok)
    return app


@pytest.mark.parametrize(
    ("allowed", "client", "status"),
    [
        pytest.param(["1.1.1.0/24"], "1.1.1.9", 200, id="inside"),
        pytest.param(["1.1.1.5/24"], "1.1.1.9", 200, id="host bits"),
        pytest.param(["1.1.1.0/24"], "1.1.2.0", 403, id="beside"),
        pytest.param(["1.1.1.0/24"], "::ffff:1.1.1.9", 200, id="mapped client"),
        pytest.param(["::ffff:1.1.1.0/120"], "1.1.1.9", 200, id="mapped network"),
        pytest.param(["::/0"], "1.1.1.9", 403, id="all of v6 is no v4"),
        pytest.param(["0.0.0.0/0"], "2001:db8::1", 403, id="all of v4 is no v6"),
        pytest.param(["2001:db8::/32"], "[2001:db8::1]:80", 200, id="v6"),
        pytest.param(["1.1.1.0/24"], "1.1.1.9, 6.6.6.6", 403, id="spoofed at the left"),
        pytest.param(["127.0.0.1"], "6.6.6.6", 403, id="the proxy is not the client"),
        pytest.param([], "127.0.0.1", 403, id="an empty list lets nobody in"),
    ],
)
async def test_gate(aiohttp_client: Client, allowed: list[str], client: str, status: int) -> None:
    """The resolved client, never the proxy, is looked up; an empty allowlist is closed."""
    http = await aiohttp_client(_app(allowed))
    assert (await http.get("/", headers={"X-Forwarded-For": client})).status == status


@pytest.mark.parametrize("path", ["/", "/livez", "/nowhere", "/livez//", "/%6Civez", "/livez/../", "/?next=/livez"])
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
async def test_no_route_is_exempt(aiohttp_client: Client, path: str, method: str) -> None:
    """Every route is gated, however it is written and whatever Host says; a stranger cannot tell which routes exist."""
    http = await aiohttp_client(_app(["1.1.1.1"]))
    response = await http.request(method, path, headers={"Host": "localhost/livez", "X-Forwarded-For": "6.6.6.6"})
    assert response.status == 403


async def test_denial_tells_nothing_and_is_logged(aiohttp_client: Client, caplog: pytest.LogCaptureFixture) -> None:
    """The answer names no network and no address; the log has the peer and the client."""
    http = await aiohttp_client(_app(["1.1.1.0/24"]))
    with caplog.at_level(logging.WARNING, logger="warmstart.edge"):
        response = await http.get("/", headers={"X-Forwarded-For": "6.6.6.6"})
    assert (await response.json())["detail"] == "Your address is not allowed (ALLOWED_IPS)."
    assert "1.1.1" not in await response.text()
    assert "6.6.6.6" not in await response.text()
    (record,) = [record for record in caplog.records if record.name == "warmstart.edge"]
    assert record.levelno == logging.WARNING
    assert "127.0.0.1" in record.getMessage()
    assert "6.6.6.6" in record.getMessage()


async def test_disabled_lets_everybody_in(aiohttp_client: Client) -> None:
    """The switch opens the gate, also with an empty list."""
    http = await aiohttp_client(_app([], disabled=True))
    assert (await http.get("/", headers={"X-Forwarded-For": "6.6.6.6"})).status == 200


async def test_closed_without_the_client_address(aiohttp_client: Client) -> None:
    """Installed without the client address middleware, the gate is closed rather than open."""
    http = await aiohttp_client(_app(["0.0.0.0/0"], resolved=False))
    assert (await http.get("/")).status == 403
