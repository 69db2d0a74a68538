"""middleware.request_id: every request has a name, on its answer and on its log lines."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient

from middleware.request_id import request_id_middleware, set_request_id_header
from middleware.response_headers import header_signal
from runtime.telemetry.logging import JsonFormatter
from runtime.telemetry.request_scope import request_facts
from runtime.telemetry.tracing import caller_trace

Client = Callable[[web.Application], Awaitable[TestClient[web.Request, web.Application]]]

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture
def lines() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """The JSON log lines written so far."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("tests.request_id")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    logger.removeHandler(handler)


def _app() -> web.Application:
    async def ok(request: web.Request) -> web.Response:
        logging.getLogger("tests.request_id").info("handled")
        return web.Response(text="ok")

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write_eof(b"end")
        return response

    app = web.Application(middlewares=[request_id_middleware])
    app.on_response_prepare.append(header_signal(set_request_id_header))
    app.router.add_get("/", ok)
    app.router.add_get("/stream", stream)
    return app


async def test_spans_get_the_callers_headers(aiohttp_client: Client) -> None:
    """Those of a valid trace, lines of tracestate joined, and nothing of the connection's request before."""
    seen: list[object] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(caller_trace.get())
        return web.Response()

    app = web.Application(middlewares=[request_id_middleware])
    app.router.add_get("/", handler)
    http = await aiohttp_client(app)
    given = f"00-{TRACE}-{PARENT}-01"
    await http.get("/", headers=[("traceparent", given), ("tracestate", "a=1"), ("tracestate", "b=2")])
    await http.get("/", headers={"tracestate": "a=1"})
    assert seen == [{"traceparent": given, "tracestate": "a=1,b=2"}, None]


@pytest.mark.parametrize("given", ["a", "A-b_c.9", "x" * 128, "550e8400-e29b-41d4-a716-446655440000", "..", "-"])
async def test_harmless_ids_are_kept(aiohttp_client: Client, given: str) -> None:
    """A caller's own id comes back, so that both logs can be joined."""
    http = await aiohttp_client(_app())
    assert (await http.get("/", headers={"X-Request-Id": given})).headers["X-Request-Id"] == given


@pytest.mark.parametrize(
    "given",
    [
        pytest.param("", id="empty"),
        pytest.param("x" * 129, id="too long"),
        pytest.param("a b", id="blank"),
        pytest.param("a,b", id="comma"),
        pytest.param("a;b=c", id="semicolon"),
        pytest.param('"a"', id="quotes"),
        pytest.param("<script>", id="markup"),
        pytest.param("${jndi:x}", id="lookup"),
        pytest.param("é", id="not ASCII"),
        pytest.param("١٢٣", id="digits, but not ASCII"),
        pytest.param("a\tb", id="tab"),
        pytest.param("../../etc", id="slashes"),
    ],
)
async def test_other_ids_are_replaced(aiohttp_client: Client, given: str) -> None:
    """Anything that a log or a header could stumble over is replaced by an id of our own; the request goes on."""
    http = await aiohttp_client(_app())
    response = await http.get("/", headers={"X-Request-Id": given})
    assert response.status == 200
    assert re.fullmatch(r"[0-9a-f]{32}", response.headers["X-Request-Id"])


async def test_ids_are_unique(aiohttp_client: Client) -> None:
    """Requests that bring no id get one each."""
    http = await aiohttp_client(_app())
    assert len({(await http.get("/")).headers["X-Request-Id"] for _ in range(20)}) == 20


@pytest.mark.parametrize(("path", "status"), [("/stream", 200), ("/nowhere", 404)])
async def test_streams_and_errors_carry_it(aiohttp_client: Client, path: str, status: int) -> None:
    """Streams carry the id, and so do aiohttp's own errors."""
    http = await aiohttp_client(_app())
    response = await http.get(path, headers={"X-Request-Id": "mine"})
    assert (response.status, response.headers["X-Request-Id"]) == (status, "mine")


async def test_log_lines_carry_it(aiohttp_client: Client, lines: Callable[[], list[dict[str, Any]]]) -> None:
    """Lines logged for a request carry its id, and its trace if it has one; afterwards nothing is left behind."""
    http = await aiohttp_client(_app())
    await http.get("/", headers={"X-Request-Id": "one", "traceparent": f"00-{TRACE}-{PARENT}-01"})
    await http.get("/", headers={"X-Request-Id": "two", "traceparent": "nonsense"})
    first, second = lines()
    assert (first["request_id"], first["trace_id"], first["parent_id"]) == ("one", TRACE, PARENT)
    assert second["request_id"] == "two"
    assert "trace_id" not in second
    assert request_facts.get() is None
