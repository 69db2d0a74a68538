"""Random text for every parser of untrusted text: no other exception than the agreed one, no work without bound.

The parsers of addresses, keys, signatures, hosts and JSON have such tests beside their own; these are the rest, and the
whole server.
"""

from __future__ import annotations

import asyncio
import random
import re
from contextlib import suppress

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from handlers.generation.cache_control import CacheControl
from handlers.operations import OPERATIONS
from handlers.schemas.parsing import parse
from loadtests.service import Service
from runtime.errors import InvalidRequest
from runtime.telemetry.tracing import parse_traceparent
from tests.attacks.conftest import Start
from tests.attacks.raw import PATIENCE, exchange
from tests.attacks.raw import parse as parse_answers
from tests.support.soak import soak

MANY = settings(max_examples=soak(10_000))  # of each parser


@MANY
@given(st.text('no-strecahmx=" ,\\1;\t\xe9', max_size=80))
@example('"' + '\\"' * 200_000)  # read again from each of its quotes, this would take an hour
@example('a="' * 200_000)
@example("a" + " " * 200_000 + "b")
def test_cache_control(text: str) -> None:
    """Any text is directives; the age is never below zero."""
    assert CacheControl.parse(text).max_age >= 0


@MANY
@given(st.text("0123456789abcdefABCDEF-_ \xe9", max_size=70))
@example("00-" + "a" * 200_000)
@example("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
def test_traceparent(text: str) -> None:
    """Any text is a trace of lower-case hex, or none."""
    found = parse_traceparent(text)
    assert found is None or (re.fullmatch("[0-9a-f]{32}", found[0]) and re.fullmatch("[0-9a-f]{16}", found[1]))


_PLAIN = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8))
_JSON = st.one_of(_PLAIN, st.lists(_PLAIN, max_size=3), st.dictionaries(st.text(max_size=4), _PLAIN, max_size=2))
_NAMES = sorted({name for operation in OPERATIONS.values() for name in operation.request.model_fields})


@settings(max_examples=soak(2000))  # pydantic's, not ours
@given(st.sampled_from(sorted(OPERATIONS)), st.dictionaries(st.sampled_from(_NAMES), _JSON, max_size=6))
def test_requests(operation: str, payload: dict[str, object]) -> None:
    """Any JSON object is a request of an operation, or InvalidRequest."""
    with suppress(InvalidRequest):
        parse(OPERATIONS[operation].request, payload)


# The whole server


@pytest.fixture(scope="module")
def service(start: Start) -> Service:
    """Deadlines that thousands of unfinished requests can wait for."""
    return start(
        HEADER_TIMEOUT_SECONDS="1",
        BODY_TIMEOUT_SECONDS="1",
        KEEPALIVE_SECONDS="1",
        LOG_LEVEL="WARNING",
        MAX_CONNECTIONS_PER_ADDRESS="1000",
    )


_CHAT = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
_SEEDS = [
    b"GET /models?x=%20y HTTP/1.1\r\nHost: x\r\nAccept: */*\r\nCookie: a=b\r\n\r\n",
    b'POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 12\r\n\r\n{"prompt":1}',
    _CHAT + b'Transfer-Encoding: chunked\r\n\r\n5;a=b\r\n{"mes\r\n0\r\nX: y\r\n\r\n',
    b"OPTIONS /generate HTTP/1.1\r\nHost: x\r\nOrigin: https://a\r\nAccess-Control-Request-Method: POST\r\n\r\n",
    b"DELETE /cache?model=x HTTP/1.0\r\nExpect: 100-continue\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
]
_PIECES = [
    *(
        b"\r\n",
        b"\n",
        b"\r",
        b"\0",
        b" ",
        b":",
        b";",
        b",",
        b"%",
        b"\xff",
        b"\x80",
        b"0",
        b"-1",
        b"9" * 20,
        b"HTTP/1.1",
    ),
    *(
        b"Content-Length: 5\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Expect: 100-continue\r\n",
        b"HTTP/1.1",
        b"Host: y\r\n",
    ),
    *(
        b"X-Forwarded-For: 10.0.0.1\r\n",
        b"Content-Encoding: gzip\r\n",
        b"Upgrade: websocket\r\nConnection: upgrade\r\n",
    ),
]


def _mutated(chance: random.Random) -> bytes:
    """One or two requests with one to five faults."""
    raw = bytearray(b"".join(chance.choices(_SEEDS, k=chance.randint(1, 2))))
    for _ in range(chance.randint(1, 5)):
        place = chance.randrange(len(raw) + 1)
        match chance.randrange(4):
            case 0:
                raw[place:place] = chance.choice(_PIECES)
            case 1:
                del raw[place : place + chance.randint(1, 20)]
            case 2:
                raw[place : place + 1] = bytes([chance.randrange(256)])
            case 3:
                raw[place:place] = raw[chance.randrange(len(raw) + 1) :][:30]
    return bytes(raw)


async def test_random_requests(service: Service) -> None:
    """Mutated requests, 800 at once: each answer is whole HTTP below 500, each connection ends, the service goes on."""
    chance = random.Random(11)
    statuses: set[int] = set()

    async def send(raw: bytes) -> None:
        async with asyncio.timeout(4 * PATIENCE):
            reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
            received = b""
            try:
                writer.write(raw)
                while chunk := await reader.read(65_536):
                    received += chunk
            except ConnectionError:
                received = b""  # a reset may have overtaken half an answer
            finally:
                writer.close()
        # A request of the mutant's that became HEAD has an answer without a body, which this client cannot read.
        if b"HEAD" not in raw:
            statuses.update(answer.status for answer in parse_answers(received, ended=True))

    for _ in range(soak(3, 1)):
        await asyncio.gather(*(send(_mutated(chance)) for _ in range(800)))
    assert {200, 400, 404, 405} <= statuses
    assert max(statuses) < 500
    healthy = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    assert (await asyncio.to_thread(exchange, service.port, healthy)).statuses == [200]
    assert "ERROR" not in service.log.read_text()
