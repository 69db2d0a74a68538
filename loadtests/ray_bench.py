"""Figures of the Ray application: ``python -m loadtests.ray_bench MEASUREMENT``. docs/growing.md has results.

Every measurement starts a cluster of raylets on this machine, with its client on the same cores. Those that name a fake
engine simulate the time of a model's steps and nothing else: Ray, routing, retries and HTTP are real.

* ``failures``: requests that fail while the application is updated, a replica is killed, a node is lost (fake engine).
* ``prefix``: part of the prompts' tokens found in prefix caches by conversations, for each router (real model).
* ``overhead``: time of a request and of a token beside the bare service (real model).
* ``zero``: time from a request without any replica to its first token (real model).
* ``scaling``: requests per second of 1, 2 and more replicas, 200 clients (fake engine with eight slots).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import aiohttp

from loadtests.ray_cluster import RayCluster, running_cluster
from loadtests.service import running_service

FAST, SLOW = (f"tests.support.slow_engines:{name}" for name in ("tokens_of_50_ms", "tokens_of_400_ms"))
_REAL = {"RESPONSE_CACHE": "off", "LOG_LEVEL": "WARNING"}


class Load:
    """A closed loop of clients that stream, and what became of their requests.

    Args:
        url: the service's base URL.
        payload: returns the payload of a request, given its number; streamed from ``/complete``.

    Attributes:
        outcomes: counts of ``ok``, ``before`` (failed before the first event), ``after`` (ended by an error event),
            ``broken`` (ended without one).
    """

    def __init__(self, url: str, payload: Callable[[int], dict[str, Any]]) -> None:
        self.outcomes: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self._url, self._payload = url, payload
        self._begun = 0
        self._ending = False

    async def run(self, clients: int, work: Callable[[], Any], requests: int = 0) -> float:
        """Run the clients while ``work`` runs in a thread, and until there were so many requests; returns seconds."""
        start = time.perf_counter()
        connector = aiohttp.TCPConnector(limit=clients)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(300)) as session:
            tasks = [asyncio.create_task(self._client(session)) for _ in range(clients)]
            await asyncio.to_thread(work)
            while self.outcomes.total() < requests:  # noqa: ASYNC110 - the clients count
                await asyncio.sleep(0.05)
            self._ending = True
            await asyncio.gather(*tasks)
        return time.perf_counter() - start

    async def _client(self, session: aiohttp.ClientSession) -> None:
        while not self._ending:
            self._begun += 1
            outcome, reason = await self._request(session, self._payload(self._begun))
            self.outcomes[outcome] += 1
            if reason:
                self.reasons[reason] += 1

    async def _request(self, session: aiohttp.ClientSession, payload: dict[str, Any]) -> tuple[str, str]:
        events = 0
        try:
            async with session.post(f"{self._url}/complete", json=payload | {"stream": True}) as response:
                if response.status != 200:
                    return "before", f"{response.status} {(await response.text())[:200]}"
                async for line in response.content:
                    if line.startswith(b'data: {"error"'):
                        return ("after" if events else "before"), line.decode()[:200]
                    if line.startswith(b"data: [DONE]"):
                        return "ok", ""
                    events += line.startswith(b"data:")
                return ("broken" if events else "before"), "the stream ended"
        except (aiohttp.ClientError, TimeoutError) as error:
            return ("broken" if events else "before"), type(error).__name__


def failures(requests: int) -> dict[str, Any]:
    """Count failed requests of 32 clients in an update, the death of a replica, and the loss of a node.

    Args:
        requests: the least number of requests in each part.
    """
    arguments: dict[str, Any] = {
        "replicas": 2,
        "context": FAST,
        "settings": {"LOG_LEVEL": "WARNING", "DRAIN_SECONDS": "30"},
    }
    found: dict[str, Any] = {}

    def after_two_seconds(work: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            time.sleep(2)
            work()

        return run

    with running_cluster(arguments, nodes=(1, 1, 1)) as cluster:
        update = arguments | {"settings": arguments["settings"] | {"MAX_QUEUE": "300"}}
        parts: dict[str, Callable[[], Any]] = {
            "update": lambda: cluster.do("deploy", arguments=update),
            "replica killed": cluster.kill_engine,
            "node lost": cluster.kill_node,
        }
        for name, work in parts.items():
            load = Load(cluster.url, lambda number: {"prompt": f"{number} " * 40})
            seconds = asyncio.run(load.run(32, after_two_seconds(work), requests))
            found[name] = dict(load.outcomes) | {"seconds": round(seconds, 1), "reasons": dict(load.reasons)}
            _report(name, found[name])
            _settle(cluster, 2)
    return found


def _settle(cluster: RayCluster, replicas: int) -> None:
    """Wait until so many replicas run."""
    while cluster.do("status") != {"RUNNING": replicas} or len(cluster.engines()) != replicas:
        time.sleep(0.2)


def prefix(turns: int, conversations: int) -> dict[str, Any]:
    """Return the part of prompt tokens that were found in prefix caches, for routers and numbers of replicas.

    Args:
        turns: the turns of a conversation.
        conversations: conversations, eight at a time.
    """
    found = {}
    for replicas, router in ((1, "prefix"), (2, "prefix"), (2, "round_robin"), (4, "prefix"), (4, "round_robin")):
        # Twice as many cores as there are, so that four replicas start; this measures tokens and not time.
        arguments = {"replicas": replicas, "cpus": 0.5, "router": router, "settings": _REAL}
        with running_cluster(arguments) as cluster:
            rate = asyncio.run(_conversations(cluster.url, turns, conversations))
        found[f"{replicas} {router}"] = rate
        _report(f"{replicas} {router}", rate)
    return found


async def _conversations(url: str, turns: int, count: int) -> float:
    prompt_tokens = cached_tokens = 0
    slots = asyncio.Semaphore(8)
    system = "You are a helpful assistant who answers briefly and in plain words. " * 3

    async def converse(session: aiohttp.ClientSession, number: int) -> None:
        nonlocal prompt_tokens, cached_tokens
        messages = [{"role": "system", "content": system}]
        async with slots:
            for turn in range(turns):
                text = f"Conversation {number}, question {turn}: tell me one more thing about the number {number * 37}."
                messages.append({"role": "user", "content": text})
                payload = {"messages": messages, "max_tokens": 16}
                async with session.post(f"{url}/v1/chat/completions", json=payload) as response:
                    answer = await response.json()
                usage = answer["usage"]
                prompt_tokens += usage["prompt_tokens"]
                cached_tokens += usage["prompt_tokens_details"]["cached_tokens"]
                messages.append({"role": "assistant", "content": answer["choices"][0]["message"]["content"]})

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(300)) as session:
        await asyncio.gather(*(converse(session, number) for number in range(count)))
    return round(cached_tokens / prompt_tokens, 3)


def overhead(requests: int) -> dict[str, Any]:
    """Return the median milliseconds of a health check, a token's answer and a further token, bare and through Ray.

    Args:
        requests: requests of each kind, one at a time, alternately to both.
    """
    settings = _REAL | {"NUM_THREADS": "1"}
    with running_service(**settings) as bare, running_cluster({"replicas": 1, "settings": settings}) as cluster:
        bare.wait("/readyz")
        times: dict[str, dict[str, list[float]]] = {"bare": {}, "ray": {}}
        for number in range(requests):
            for name, url in (("bare", bare.url), ("ray", cluster.url)):
                for kind, seconds in asyncio.run(_times(url, number)).items():
                    times[name].setdefault(kind, []).append(seconds * 1000)
    found = {
        name: {kind: round(statistics.median(all_), 2) for kind, all_ in kinds.items()} for name, kinds in times.items()
    }
    for name, kinds in found.items():
        _report(name, kinds)
    return found


async def _times(url: str, number: int) -> dict[str, float]:
    async with aiohttp.ClientSession() as session:

        async def take(tokens: int) -> float:
            start = time.perf_counter()
            payload = {"prompt": f"{number} and {tokens}", "max_tokens": tokens, "ignore_eos": True, "stream": True}
            async with session.post(f"{url}/v1/completions", json=payload) as response:
                await response.read()
            return time.perf_counter() - start

        start = time.perf_counter()
        async with session.get(f"{url}/livez") as response:
            await response.read()
        health = time.perf_counter() - start
        one, many = await take(1), await take(65)
        return {"health check": health, "one token": one, "further token": (many - one) / 64}


def zero() -> dict[str, Any]:
    """Return seconds from a request to its one token, without a replica and with one, and until the last one ends."""
    arguments = {"min_replicas": 0, "max_replicas": 1, "upscale_seconds": 0, "downscale_seconds": 2, "settings": _REAL}
    found: dict[str, Any] = {}
    with running_cluster(arguments) as cluster:
        while cluster.engines():
            time.sleep(0.2)
        for name in ("from zero", "warm"):
            start = time.perf_counter()
            load = Load(cluster.url, lambda number: {"prompt": "The sea is", "max_new_tokens": 1})
            asyncio.run(load.run(1, lambda: None, 1))
            found[name] = round(time.perf_counter() - start, 2)
        start = time.perf_counter()
        while cluster.engines():
            time.sleep(0.2)
        found["to zero"] = round(time.perf_counter() - start, 1)
    _report("seconds", found)
    return found


def scaling(replicas: list[int], seconds: float) -> dict[str, Any]:
    """Return requests per second of 200 clients. A replica has eight slots, and a request takes four seconds in one.

    Args:
        replicas: numbers of replicas.
        seconds: how long each is measured.
    """
    found = {}
    for number in replicas:
        arguments = {
            "replicas": number,
            "cpus": 0.01,
            "context": SLOW,
            "settings": {"MAX_BATCH": "8", "MAX_QUEUE": "1000", "LOG_LEVEL": "WARNING"},
        }
        with running_cluster(arguments) as cluster:
            load = Load(cluster.url, lambda number: {"prompt": f"{number} " * 40})
            counts: list[tuple[float, int]] = []

            def measure(load: Load = load, counts: list[tuple[float, int]] = counts) -> None:
                time.sleep(8)  # two requests of each slot
                counts.append((time.perf_counter(), load.outcomes.total()))
                time.sleep(seconds)
                counts.append((time.perf_counter(), load.outcomes.total()))

            asyncio.run(load.run(200, measure))
        (begun, before), (ended, after) = counts
        found[str(number)] = {"requests/s": round((after - before) / (ended - begun), 2)} | dict(load.outcomes)
        _report(f"{number} replicas", found[str(number)])
    return found


def _report(name: str, result: Any) -> None:
    print(f"{name}: {json.dumps(result)}", flush=True)


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measurement", choices=["failures", "prefix", "overhead", "zero", "scaling"])
    parser.add_argument("--requests", type=int, default=1000, help="of each part (failures, overhead)")
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2, 16], help="of scaling")
    parser.add_argument("--seconds", type=float, default=24, help="of each part of scaling")
    options = parser.parse_args()
    measurements: dict[str, Callable[[], Any]] = {
        "failures": lambda: failures(options.requests),
        "prefix": lambda: prefix(6, 24),
        "overhead": lambda: overhead(min(options.requests, 100)),
        "zero": zero,
        "scaling": lambda: scaling(options.replicas, options.seconds),
    }
    measurements[options.measurement]()


if __name__ == "__main__":
    _main()
