"""middleware.rate_limit: how many requests each client may send, and how many at once, seen over HTTP."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from tests.support.fakes import FakeEngine, serving, until
from tests.support.limits import ASK, COST, HUNDRED, ask, key_of, limited

# Requests


async def test_burst_then_refusal() -> None:
    """The burst gets in and is counted down; then 429 says when to come again. The headers are structured fields."""
    async with limited(rate_limit_requests_per_minute=10, rate_limit_burst=0.3) as session:
        answers = [await ask(session, "/complete", ASK) for _ in range(5)]
    assert [answer.status for answer in answers] == [200, 200, 200, 429, 429]
    assert [answer.left["requests"]["r"] for answer in answers] == [2, 1, 0, 0, 0]
    assert answers[0].policy == {"requests": {"q": 10, "w": 60}}
    assert answers[0].left["requests"]["t"] == 9  # 60 / (10 - 3) seconds for one request
    assert 1 <= int(answers[3].headers["Retry-After"]) <= 9
    assert answers[3].body["code"] == "rate_limited"
    assert "10 requests in a minute" in answers[3].body["detail"]
    assert "Retry-After" not in answers[0].headers
    assert "X-RateLimit-Limit" not in answers[0].headers


async def test_refusal_of_openai() -> None:
    """An OpenAI client is refused in its own language."""
    async with limited(rate_limit_requests_per_minute=2, rate_limit_burst=0.5) as session:
        await ask(session, "/v1/models")
        refused = await ask(session, "/v1/models")
    assert refused.status == 429
    assert refused.body["error"]["type"] == "rate_limit_error"
    assert refused.body["error"]["code"] == "rate_limited"
    assert int(refused.headers["Retry-After"]) >= 1


async def test_legacy_headers() -> None:
    """By setting the older headers stand beside them: the limit, what is left, and seconds."""
    async with limited(rate_limit_requests_per_minute=10, rate_limit_legacy_headers=True) as session:
        answer = await ask(session)
    shown = [answer.headers[f"X-RateLimit-{name}"] for name in ("Limit", "Remaining", "Reset")]
    assert shown == ["10", "4", str(answer.left["requests"]["t"])]


async def test_off_by_default() -> None:
    """Without RATE_LIMIT_ENABLED nothing is counted and no header sent."""
    async with serving(rate_limit_requests_per_minute=2) as url, aiohttp.ClientSession(url) as session:
        answers = [await ask(session) for _ in range(5)]
    assert {answer.status for answer in answers} == {200}
    assert all("RateLimit" not in answer.headers for answer in answers)


async def test_no_limits_at_all() -> None:
    """Limits of 0 are none, and then there is nothing to tell either."""
    async with limited(rate_limit_requests_per_minute=0) as session:
        answers = [await ask(session) for _ in range(50)]
    assert {answer.status for answer in answers} == {200}
    assert all("RateLimit" not in answer.headers for answer in answers)


async def test_what_is_never_limited() -> None:
    """Probes answer, and are not counted, however often they are asked; nor are a browser's preflights."""
    settings: dict[str, Any] = {"rate_limit_requests_per_minute": 2, "cors_origins": "https://app.example"}
    preflight = {"Origin": "https://app.example", "Access_Control_Request_Method": "POST"}
    async with limited(**settings) as session:
        await ask(session)
        for _ in range(5):
            for path in ("/livez", "/readyz", "/health"):
                answer = await ask(session, path)
                assert (answer.status, answer.left) == (200, {})
            assert (await ask(session, "/complete", method="OPTIONS", **preflight)).status == 200
        assert (await ask(session)).status == 429
        # A preflight is one only where there is something to ask for.
        assert (await ask(session, "/nowhere", method="OPTIONS", **preflight)).status == 429


async def test_what_is_not_there_counts_too() -> None:
    """Looking for paths is limited like anything else."""
    async with limited(rate_limit_requests_per_minute=4) as session:
        assert [(await ask(session, f"/{number}")).status for number in range(3)] == [404, 404, 429]


async def test_pages_may_read_the_headers() -> None:
    """A page of another origin is shown what is left."""
    async with limited(cors_origins="https://app.example") as session:
        answer = await ask(session, "/complete", ASK, Origin="https://app.example")
    assert {"RateLimit", "RateLimit-Policy"} <= set(answer.headers["Access-Control-Expose-Headers"].split(","))


# Clients


@pytest.mark.parametrize(
    ("first", "second", "apart"),
    [
        ("192.0.2.1", "192.0.2.2", True),
        ("192.0.2.1", "::ffff:192.0.2.1", False),
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", False),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", True),
    ],
)
async def test_addresses(first: str, second: str, apart: bool) -> None:
    """Without keys, clients are told apart by address, and IPv6 addresses by their /64."""
    async with limited(
        trusted_proxies="127.0.0.1", disable_ip_restriction=True, rate_limit_requests_per_minute=2
    ) as session:
        assert (await ask(session, X_Forwarded_For=first)).status == 200
        assert (await ask(session, X_Forwarded_For=first)).status == 429
        assert (await ask(session, X_Forwarded_For=second)).status == (200 if apart else 429)


async def test_keys() -> None:
    """Keys are told apart though they share an address, and their own limits go before the settings'; 0 is none."""
    keys = [
        key_of("k_a"),
        key_of("k_b"),
        key_of("k_own", requests_per_minute=6),
        key_of("k_free", requests_per_minute=0),
    ]
    async with limited(api_keys="\n".join(record for _, record in keys), rate_limit_requests_per_minute=2) as session:
        got = [[await ask(session, X_API_Key=key) for _ in range(5)] for key, _ in keys]
    assert [[answer.status for answer in answers] for answers in got] == [
        [200, 429, 429, 429, 429],
        [200, 429, 429, 429, 429],
        [200, 200, 200, 429, 429],
        [200] * 5,
    ]
    assert got[2][0].policy == {"requests": {"q": 6, "w": 60}}
    assert got[3][0].policy == {}


async def test_own_tokens() -> None:
    """A key's own tokens per minute hold where the settings have none."""
    key, record = key_of("k_a", tokens_per_minute=100)
    async with limited(api_keys=record, rate_limit_burst=0.95) as session:
        answer = await ask(session, "/complete", ASK, X_API_Key=key)
    assert answer.policy["tokens"] == {"q": 100, "qu": "tokens", "w": 60}
    assert answer.left["tokens"]["r"] == 95 - COST


# At the same time


async def test_concurrency() -> None:
    """Each client may have so many requests running in this process; another's are not counted against it."""
    keys = [key_of("k_a"), key_of("k_b")]
    engine = FakeEngine(pause=0.3)
    async with limited(engine, api_keys="\n".join(line for _, line in keys), rate_limit_concurrency=2) as session:
        running = [
            asyncio.create_task(ask(session, "/complete", ASK | {"stream": stream}, X_API_Key=keys[0][0]))
            for stream in (False, True)
        ]
        await until(lambda: engine.open_streams == 2)
        refused = await ask(session, "/complete", ASK, X_API_Key=keys[0][0])
        assert (refused.status, refused.headers["Retry-After"]) == (429, "1")
        assert "RATE_LIMIT_CONCURRENCY" in refused.body["detail"]
        assert (await ask(session, "/livez")).status == 200
        assert (await ask(session, X_API_Key=keys[1][0])).status == 200
        assert [(await task).status for task in running] == [200, 200]
        assert (await ask(session, "/complete", ASK, X_API_Key=keys[0][0])).status == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_concurrency_is_freed_however_a_request_ends(stream: bool) -> None:
    """By an answer, by an error, by a refusal, by a client that goes away."""
    engine = FakeEngine(pause=0.2)
    async with limited(engine, rate_limit_concurrency=1, rate_limit_requests_per_minute=10) as session:
        assert (await ask(session, "/complete", ASK | {"stream": stream})).status == 200
        assert (await ask(session, "/complete", {"prompt": []})).status == 400
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ask(session, "/complete", ASK | {"stream": stream}), 0.3)
        await until(lambda: not engine.open_streams)
        assert [(await ask(session)).status for _ in range(3)] == [200, 200, 429]
        last = await ask(session)
        assert (last.status, "RATE_LIMIT_CONCURRENCY" in last.body["detail"]) == (429, False)


async def test_who_takes_its_answer_slowly_still_counts() -> None:
    """A request runs until its answer is sent; a client that hangs up instead gives its place back."""
    body = json.dumps(ASK).encode()
    async with limited(FakeEngine(words=("a" * 20_000_000,)), rate_limit_concurrency=1) as session:
        url = session._base_url
        assert url is not None
        reader, writer = await asyncio.open_connection(url.host, url.port, limit=1024)
        head = f"POST /complete HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        writer.write(head.encode() + b"\r\n\r\n" + body)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        assert (await ask(session)).status == 429
        writer.transport.abort()
        for _ in range(500):
            if freed := (await ask(session)).status == 200:
                break
            await asyncio.sleep(0.01)
        assert freed


# What is told


async def test_metrics() -> None:
    """Refusals are counted by the code of the error, and the clients that are remembered."""
    async with limited(rate_limit_requests_per_minute=4) as session:
        await ask(session, "/complete", {"prompt": []})
        await ask(session, "/nowhere")
        await ask(session)
        # Prometheus has an address of its own, but here it is the same.
        key = {"Authorization": "x"}
        assert (await ask(session, "/metrics", **key)).status == 429
    async with limited(**HUNDRED) as session:
        await ask(session, "/complete", {"prompt": []})
        await ask(session, "/complete", ASK)
        shown = (await ask(session, "/metrics")).body
    assert 'warmstart:edge_refusals_total{code="invalid_request"} 1.0' in shown
    assert "warmstart:rate_limit_clients 1.0" in shown
