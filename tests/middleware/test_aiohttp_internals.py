"""middleware.aiohttp_internals: the private attributes of aiohttp exist and do what the functions promise."""

from __future__ import annotations

import ast
import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from middleware.aiohttp_internals import (
    ReplaceableServerRunner,
    cache_body,
    close_idle_at,
    connection_arguments,
    current_request,
    is_handling,
    is_waiting,
    queued_bodies,
    refuse_incomplete_request,
    request_data,
    take_received_body,
)
from runtime.errors import RequestHeaderFieldsTooLarge
from tests.support.fakes import until
from tests.support.wire import PATIENCE

ROOT = Path(__file__).parents[2]
PUBLIC = {"_replace", "_exit"}  # documented methods of named tuples and of ``os`` that begin with an underscore
CONNECTION = {name for kind in web.RequestHandler.__mro__ for name in vars(kind) if name.startswith("_")}


class Runner(ReplaceableServerRunner):
    """Serves a handler on a port, and keeps the connection of its last request."""

    def __init__(self, handler: Callable[[web.Request], Any], **options: Any) -> None:
        app = web.Application()
        app.router.add_route("*", "/", handler)
        super().__init__(app, access_log=None, shutdown_timeout=0.1, **options)
        self.created: web.Server | None = None
        self.connections: list[web.RequestHandler] = []

    def replace_server(self, server: web.Server) -> web.Server:
        self.created = server
        connections = self.connections

        class Server(web.Server):
            def __call__(self) -> web.RequestHandler:
                connections.append(web.RequestHandler(self, **connection_arguments(self)))
                return connections[-1]

        return Server(server.request_handler, request_factory=server.request_factory, **connection_arguments(server))

    async def __aenter__(self) -> Runner:
        await self.setup()
        await web.TCPSite(self, "127.0.0.1", 0).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.cleanup()

    async def send(self, data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a connection, send bytes, and wait until the server has accepted it."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.addresses[0][1])
        writer.write(data)
        await until(lambda: bool(self.connections))
        return reader, writer


async def test_request_data_is_what_the_request_reads() -> None:
    request = make_mocked_request("GET", "/")
    first, second = web.RequestKey("first", int), web.RequestKey("second", int)
    request[first] = 1
    request_data(request)[second] = 2
    assert request_data(request) == {first: 1, second: 2}
    assert request[second] == 2


async def test_a_received_body_is_taken_once_and_cached() -> None:
    """``take_received_body`` returns nothing once a body is cached, and ``read`` returns the cached one."""
    taken: list[bytes | None] = []

    async def handler(request: web.Request) -> web.Response:
        taken.append(take_received_body(request))
        cache_body(request, b"another")
        taken.append(take_received_body(request))
        return web.Response(body=await request.read())

    async with Runner(handler) as runner:
        reader, writer = await runner.send(
            b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 4\r\n\r\nbody"
        )
        assert (await reader.read()).endswith(b"\r\n\r\nanother")
        writer.close()
    assert taken == [b"body", None]


async def test_an_incomplete_body_is_not_taken() -> None:
    taken: list[bytes | None] = []

    async def handler(request: web.Request) -> web.Response:
        taken.append(take_received_body(request))
        return web.Response(body=await request.read())

    async with Runner(handler) as runner:
        reader, writer = await runner.send(
            b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 4\r\n\r\nbo"
        )
        await until(lambda: bool(taken))
        writer.write(b"dy")
        assert (await reader.read()).endswith(b"\r\n\r\nbody")
        writer.close()
    assert taken == [None]


async def test_the_states_of_a_connection() -> None:
    """A connection waits, then handles a request while another is queued, then waits again."""
    release = asyncio.Event()

    async def handler(request: web.Request) -> web.Response:
        await release.wait()
        return web.Response()

    async with Runner(handler) as runner:
        _, writer = await runner.send(b"")
        (connection,) = runner.connections
        await until(lambda: is_waiting(connection))
        assert not is_handling(connection)
        assert current_request(connection) is None
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 2)
        await until(lambda: is_handling(connection))
        request = current_request(connection)
        assert request is not None
        assert request.method == "GET"
        assert request.protocol is connection
        assert not is_waiting(connection)
        assert [body.is_eof() for body in queued_bodies(connection)] == [True]
        release.set()
        await until(lambda: is_waiting(connection))
        assert queued_bodies(connection) == []
        writer.close()


async def test_an_incomplete_request_is_refused() -> None:
    """The waiting connection answers with the error's status and closes."""

    async def handler(request: web.Request) -> web.Response:
        raise AssertionError("not called")

    async with Runner(handler) as runner:
        reader, writer = await runner.send(b"GET / HTTP/1.1\r\nHost: x\r\n")
        (connection,) = runner.connections
        await until(lambda: is_waiting(connection))
        refuse_incomplete_request(connection, RequestHeaderFieldsTooLarge("too large"))
        async with asyncio.timeout(PATIENCE):
            assert (await reader.read()).startswith(b"HTTP/1.0 431 ")
        writer.close()


async def test_an_idle_connection_is_closed_at_the_earliest_time() -> None:
    """A later time does not replace an earlier one, and aiohttp's timer closes the connection."""

    async def handler(request: web.Request) -> web.Response:
        raise AssertionError("not called")

    async with Runner(handler, keepalive_timeout=3600) as runner:
        reader, writer = await runner.send(b"")
        (connection,) = runner.connections
        await until(lambda: is_waiting(connection))
        now = asyncio.get_running_loop().time()
        close_idle_at(connection, now + 0.01)
        close_idle_at(connection, now + 3600)
        async with asyncio.timeout(PATIENCE):
            assert await reader.read() == b""
        writer.close()


async def test_the_arguments_of_the_runner_reach_each_connection() -> None:
    async def handler(request: web.Request) -> web.Response:
        raise AssertionError("not called")

    async with Runner(handler, keepalive_timeout=7) as runner:
        assert runner.created is not None
        arguments = connection_arguments(runner.created)
        assert arguments["keepalive_timeout"] == 7
        assert arguments["loop"] is asyncio.get_running_loop()
        assert runner.server is not runner.created


def _private_names(path: Path) -> Iterator[str]:
    """Yield each use of a private attribute that is not the class's own, and each import of a private name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("aiohttp"):
            yield from (f"{node.module}.{name.name}" for name in node.names if name.name.startswith("_"))
        if not isinstance(node, ast.Attribute) or not node.attr.startswith("_") or node.attr.startswith("__"):
            continue
        own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
        if node.attr not in PUBLIC and (not own or (path.name == "protocol.py" and node.attr in CONNECTION)):
            yield node.attr


@pytest.mark.parametrize("folder", ["middleware", "views", "app.py", "server.py"])
def test_no_other_module_uses_private_attributes(folder: str) -> None:
    """Private attributes of other objects are used in this module only, and ``Connection`` has none of aiohttp's."""
    paths = [ROOT / folder] if folder.endswith(".py") else sorted((ROOT / folder).rglob("*.py"))
    used = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in paths
        if path.name != "aiohttp_internals.py"
        for name in _private_names(path)
    }
    assert used == set()
