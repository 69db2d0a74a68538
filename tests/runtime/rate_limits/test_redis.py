"""runtime.rate_limits.gcra.redis: replicas on one real Redis share what a client may use."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis as client

from runtime.rate_limits.gcra import Commit, Decision, LimitsUnavailable, Quota
from runtime.rate_limits.redis import PREFIX, RedisLimits
from runtime.storage.redis import SharedRedis
from tests.support.cancelling import cancel_at_random
from tests.support.fakes import until
from tests.support.redis_server import REDIS_URL, real_redis

SLOW = 1e9
"""Seconds of a window in which nothing is paid off while a test runs."""

Replica = Callable[..., RedisLimits]


@pytest.fixture
def server() -> Iterator[client.Redis]:
    with real_redis(decode_responses=True) as found:
        yield found


@pytest.fixture
def prefix(server: client.Redis) -> Iterator[str]:
    """One test's own beginning of names."""
    name = f"warmstart-test:{uuid4().hex}"
    yield name
    if left := list(server.scan_iter(f"{name}*")):
        server.delete(*left)


@pytest.fixture
async def replica(prefix: str, patient_redis: None) -> AsyncIterator[Replica]:
    """Makes a replica, with connections of its own."""
    made: list[RedisLimits] = []

    def make(reservation_seconds: float = 60, url: str = REDIS_URL) -> RedisLimits:
        made.append(RedisLimits(SharedRedis(url), reservation_seconds, prefix))
        return made[-1]

    yield make
    for one in made:
        await one.close()


@dataclass
class Pause:
    """How long a call of Redis waits before it is sent, and after its answer has come; in seconds.

    ``answered`` is set when an answer has come.
    """

    before: float = 0
    after: float = 0
    answered: asyncio.Event = field(default_factory=asyncio.Event)


@pytest.fixture
def pause(monkeypatch: pytest.MonkeyPatch) -> Pause:
    run, pause = SharedRedis.run, Pause()

    async def slowly(self: SharedRedis, *arguments: Any) -> Any:
        after = pause.after
        await asyncio.sleep(pause.before)
        answer = await run(self, *arguments)
        pause.answered.set()
        await asyncio.sleep(after)
        return answer

    monkeypatch.setattr(SharedRedis, "run", slowly)
    return pause


async def requests(limits: RedisLimits, quota: Quota, name: str = "x") -> Decision:
    decision, tokens = await limits.admit(name, quota, None)
    assert decision is not None
    assert tokens is None
    return decision


async def left(limits: RedisLimits, quota: Quota, name: str = "x") -> int:
    """Tokens that could be had now."""
    _, decision = await limits.admit(name, None, quota)
    assert decision is not None
    return decision.remaining


async def reserved(limits: RedisLimits, quota: Quota, tokens: int) -> Commit:
    _, commit = await limits.reserve("x", quota, tokens)
    assert commit is not None
    return commit


async def test_replicas_share_a_limit_exactly(replica: Replica) -> None:
    """Under load from both at once as many requests get in as the burst has, not one more and not one less."""
    quota, replicas = Quota(200, 100, SLOW), [replica(), replica()]
    for _ in range(8):  # in turns, because each that waits has a connection
        await asyncio.gather(*(requests(one, quota) for one in replicas for _ in range(5)))
    decisions = await asyncio.gather(*(requests(one, quota) for one in replicas for _ in range(20)))
    assert sum(decision.admitted for decision in decisions) == 20
    refused = next(decision for decision in decisions if not decision.admitted)
    assert refused.remaining == 0
    assert refused.retry_after == pytest.approx(quota.interval, rel=1e-3)
    assert refused.reset == pytest.approx(100 * quota.interval, rel=1e-3)


async def test_replicas_share_tokens_exactly(replica: Replica) -> None:
    """Holds and settlements of both at once: never more out than the burst, and in the end what was used is charged."""
    quota, replicas = Quota(20_000, 10_000, SLOW), [replica(), replica()]
    out = most = used = 0

    async def work(one: RedisLimits, number: int) -> None:
        nonlocal out, most, used
        for turn in range(20):
            tokens = 100 + 37 * (number + turn) % 800
            _, commit = await one.reserve("x", quota, tokens)
            if commit is None:
                continue
            out += tokens
            most = max(most, out + used)
            await asyncio.sleep(0)
            cost = tokens * (turn % 3) // 8
            used, out = used + cost, out - tokens  # before the settlement: another may have what it gives back
            await commit(cost)

    await asyncio.gather(*(work(one, number) for number, one in enumerate(replicas * 6)))
    assert 0 < most <= quota.burst
    assert await left(replicas[0], quota) == quota.burst - used


async def test_time_pays_off(replica: Replica) -> None:
    """Waiting for as long as a refusal says is enough."""
    limits, quota = replica(), Quota(3, 1, 2.0)
    assert (await requests(limits, quota)).admitted
    refused = await requests(limits, quota)
    assert not refused.admitted
    assert 0 < refused.retry_after <= quota.interval
    await asyncio.sleep(refused.retry_after)
    assert (await requests(limits, quota)).admitted


async def test_clients_and_quotas_are_apart(replica: Replica) -> None:
    """One client's use is none of another's, and requests are no tokens. A client is charged for both in one step."""
    limits, quota = replica(), Quota(4, 2, SLOW)
    await reserved(limits, quota, 2)
    first = await limits.admit("x", quota, quota)
    assert [decision and decision.remaining for decision in first] == [1, 0]
    other = await limits.admit("y", quota, quota)
    assert [decision and decision.remaining for decision in other] == [1, 2]


async def test_more_than_there_can_ever_be(replica: Replica) -> None:
    """A reservation above the burst is refused for ever; one that does not fit beside other reservations, for now."""
    limits, quota = replica(), Quota(200, 100, SLOW)
    decision, commit = await limits.reserve("x", quota, 101)
    assert (commit, decision.retry_after) == (None, float("inf"))
    await reserved(limits, quota, 60)
    decision, commit = await limits.reserve("x", quota, 41)
    assert (commit, decision.remaining, decision.retry_after) == (None, 40, 0)


async def test_large_limits_lose_nothing(replica: Replica) -> None:
    """The smallest cost still counts beside the largest limit, though the clock's microseconds have 16 digits."""
    limits, quota = replica(), Quota(10**9, 5 * 10**8, SLOW)
    await (await reserved(limits, quota, 499_999_999))(499_999_999)
    await (await reserved(limits, quota, 1))(1)
    assert await left(limits, quota) == 0
    assert (await limits.reserve("x", quota, 1))[1] is None


async def test_keys_go_by_themselves(replica: Replica, server: client.Redis, prefix: str) -> None:
    """All keys of a client are on one node of a cluster, and are gone when all is paid off and nothing is held."""
    limits = replica(reservation_seconds=0.3)
    quota = Quota(100, 50, 1.0)
    for _ in range(10):
        await limits.admit("x", quota, quota)
    await reserved(limits, quota, 10)
    keys = sorted(server.scan_iter(f"{prefix}*"))
    assert keys == [f"{prefix}:{{x}}:{kind}" for kind in ("requests", "tokens")]
    assert all(
        0 < server.pttl(key) <= 510 for key in keys
    )  # the end of the reservation, and the level if it is counted in full
    await until(lambda: not list(server.scan_iter(f"{prefix}*")))
    assert PREFIX == "warmstart:limits:1"


async def test_what_a_dead_replica_held_is_charged_in_the_end(replica: Replica) -> None:
    """A reservation that is never committed expires and counts as used; committing it after that has no effect."""
    limits, quota = replica(reservation_seconds=0.1), Quota(200, 100, SLOW)
    late = await reserved(limits, quota, 30)
    await asyncio.sleep(0.15)
    decision = await late(0)
    assert decision is not None
    assert decision.remaining == 70
    commit = await reserved(replica(), quota, 70)
    decision = await commit(0)
    assert decision is not None
    assert decision.remaining == 70


async def test_whoever_is_cancelled_while_it_asks_holds_nothing(replica: Replica, pause: Pause) -> None:
    """Though Redis has counted it and nobody took the answer."""
    limits, quota = replica(), Quota(200, 100, SLOW)
    pause.after = 60
    task = asyncio.create_task(limits.reserve("x", quota, 80))
    await pause.answered.wait()
    pause.after = 0
    assert await left(limits, quota) == 20
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    assert await left(limits, quota) == 100


async def test_cancelled_at_random_moments(replica: Replica) -> None:
    """Each request ends, wherever it was, and none of them holds anything afterwards."""
    limits, quota = replica(), Quota(200, 100, SLOW)

    async def request() -> None:
        await limits.admit("x", None, quota)
        _, commit = await limits.reserve("x", quota, 80)
        assert commit is not None
        await commit(0)

    assert await cancel_at_random(request, 0.01) == 0
    await asyncio.wait(limits._commits or [asyncio.create_task(asyncio.sleep(0))])
    assert await left(limits, quota) == 100


async def test_a_settlement_outlives_its_request(replica: Replica, pause: Pause) -> None:
    """A client that goes away while its bill is settled does not stop that; closing waits for it."""
    limits, quota = replica(), Quota(200, 100, SLOW)
    commit = await reserved(limits, quota, 80)
    pause.before = 0.05
    task = asyncio.ensure_future(commit(10))
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await limits.close()
    pause.before = 0
    assert await left(replica(), quota) == 90


async def test_a_clock_set_back_locks_nobody_out(replica: Replica, server: client.Redis, prefix: str) -> None:
    """Where Redis's clock reads less than before, nothing is paid off for that time, and then it goes on as before."""
    limits, quota = replica(), Quota(200, 100, 2.0)
    await requests(limits, quota)
    key = f"{prefix}:{{x}}:requests"
    server.hset(key, mapping={"level": 100, "at": int(server.hget(key, "at") or 0) + 3_600_000_000})
    refused = await requests(limits, quota)
    assert not refused.admitted
    assert refused.retry_after <= quota.interval
    server.hset(key, "at", server.time()[0] * 1_000_000)
    await until(lambda: server.time()[0] * 1_000_000 > int(server.hget(key, "at") or 0) + 10**6)
    assert (await requests(limits, quota)).admitted


# Redis fails


async def test_scripts_and_keys_lost(replica: Replica, server: client.Redis, prefix: str) -> None:
    """A Redis that has forgotten everything is one on which nobody has used anything; settlements do no harm there."""
    limits, quota = replica(), Quota(200, 100, SLOW)
    await requests(limits, quota)
    commit = await reserved(limits, quota, 40)
    server.script_flush()
    server.delete(*server.scan_iter(f"{prefix}*"))
    decision = await requests(limits, quota)
    assert (decision.admitted, decision.remaining) == (True, 99)
    assert await left(limits, quota) == 100
    await commit(40)
    assert await left(limits, quota) == 100


@contextmanager
def redis_process(port: int, folder: Path) -> Iterator[None]:
    process = subprocess.Popen(
        ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)],
        stdout=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.kill()
        process.wait()


@pytest.mark.skipif(
    shutil.which("redis-server") is None, reason="redis-server is missing: apt-get install redis-server"
)
async def test_restart(replica: Replica, tmp_path: Path) -> None:
    """While Redis is away that is told at once; when it is back, so are the limits, on fresh connections."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    limits, quota = replica(url=f"redis://127.0.0.1:{port}/0"), Quota(200, 100, SLOW)

    async def answered() -> Decision:
        async with asyncio.timeout(15):
            while True:
                try:
                    return await requests(limits, quota)
                except LimitsUnavailable:
                    await asyncio.sleep(0.1)

    with redis_process(port, tmp_path):
        assert (await answered()).remaining == 99
        commit = await reserved(limits, quota, 10)
    with pytest.raises(LimitsUnavailable):
        await requests(limits, quota)
    assert await commit(5) is None
    with redis_process(port, tmp_path):
        assert (await answered()).remaining == 99


@pytest.mark.parametrize("answer", [None, b"", b"nonsense\r\n"], ids=["silent", "hangs up", "talks nonsense"])
async def test_a_redis_that_is_none(replica: Replica, monkeypatch: pytest.MonkeyPatch, answer: bytes | None) -> None:
    """A server that says nothing, hangs up or talks nonsense is away within the time-out, never a hang."""

    monkeypatch.setattr("runtime.storage.redis._SLICES", 10)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if answer is not None:
            writer.write(answer)
        else:
            await reader.read()
        writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as listener:
        limits = replica(url=f"redis://127.0.0.1:{listener.sockets[0].getsockname()[1]}/0")
        async with asyncio.timeout(5):
            with pytest.raises(LimitsUnavailable):
                await requests(limits, Quota(200, 100))
            with pytest.raises(LimitsUnavailable):
                await limits.reserve("x", Quota(200, 100), 1)


async def test_nobody_listens(replica: Replica) -> None:
    """A closed port is away, and its URL's password is in no message."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    limits = replica(url=f"redis://:hunter2@127.0.0.1:{port}/0")
    with pytest.raises(LimitsUnavailable) as caught:
        await requests(limits, Quota(200, 100))
    assert "hunter2" not in str(caught.value)
