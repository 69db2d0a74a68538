"""Figures of the Ray application: ``python -m loadtests.ray_bench MEASUREMENT``. docs/growing.md has results.

Every measurement starts a cluster of raylets on this machine, with its client on the same cores. Those that name a fake
engine simulate the time of a model's steps and nothing else: Ray, routing, retries and HTTP are real.

* ``failures``: requests that fail while the application is updated, a replica is killed, a node is lost (fake engine).
* ``prefix``: part of the prompts' tokens found in prefix caches by conversations, for each router (real model).
* ``overhead``: time of a request, and processor time of a request and a token, beside the bare service.
* ``zero``: time from a request without any replica to its first token (real model).
* ``scaling``: requests per second of 1, 2 and more replicas, 200 clients (fake engine with eight slots).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import aiohttp

from loadtests.ray_cluster import RayCluster, cpu_seconds, running_cluster
from loadtests.ray_load import Load
from loadtests.service import running_service

FAST, SLOW = (f"tests.support.slow_engines:{name}" for name in ("tokens_of_50_ms", "tokens_of_400_ms"))
_REAL = {"RESPONSE_CACHE": "off", "LOG_LEVEL": "WARNING"}


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
    """Return what a health check, a request for one token and a further token cost, bare and through Ray.

    The time of requests is the median of wall-clock milliseconds on the real model, one request at a time, to both in
    turn. Processor time is milliseconds of all processes, less what an idle cluster uses; a token's is measured with a
    fake engine, whose tokens are evenly spaced.

    Args:
        requests: requests of each kind.
    """
    settings = _REAL | {"NUM_THREADS": "1"}
    found: dict[str, Any] = {}
    with running_service(**settings) as bare, running_cluster({"replicas": 1, "settings": settings}) as cluster:
        bare.wait("/readyz")
        times: dict[str, list[float]] = {}
        for number in range(requests):
            for name, url in (("bare", bare.url), ("Ray", cluster.url)):
                for kind, seconds in asyncio.run(_times(url, number)).items():
                    times.setdefault(f"{name}: {kind} (ms)", []).append(seconds * 1000)
        found |= {name: round(statistics.median(values), 2) for name, values in times.items()}
        found["bare: health check (CPU ms)"] = _cpu(lambda: cpu_seconds(bare.process.pid), bare.url, 200, 0)
    with running_cluster({"replicas": 1, "context": FAST, "settings": {"LOG_LEVEL": "WARNING"}}) as cluster:
        found["Ray: health check (CPU ms)"] = _cpu(cluster.cpu_seconds, cluster.url, 200, 0)
        one, ten = (_cpu(cluster.cpu_seconds, cluster.url, 60, tokens) for tokens in (1, 10))
        found |= {"Ray: one token (CPU ms)": one, "Ray: further token (CPU ms)": round((ten - one) / 9, 2)}
    _report("overhead", found)
    return found


def _cpu(used: Callable[[], float], url: str, requests: int, tokens: int) -> float:
    """Return processor milliseconds of a request, less those of the same time without one."""
    before, start = used(), time.perf_counter()
    asyncio.run(_ask(url, requests, tokens))
    after, end = used(), time.perf_counter()
    time.sleep(end - start)
    return round((2 * after - before - used()) / requests * 1000, 2)


async def _ask(url: str, requests: int, tokens: int) -> None:
    async with aiohttp.ClientSession() as session:
        for number in range(requests):
            if not tokens:
                async with session.get(f"{url}/livez") as response:
                    await response.read()
                continue
            payload = {"prompt": str(number), "max_tokens": tokens, "stream": True}
            async with session.post(f"{url}/v1/completions", json=payload) as response:
                await response.read()


async def _times(url: str, number: int) -> dict[str, float]:
    async with aiohttp.ClientSession() as session:
        start = time.perf_counter()
        async with session.get(f"{url}/livez") as response:
            await response.read()
        health = time.perf_counter() - start
        start = time.perf_counter()
        payload = {"prompt": f"{number} and", "max_tokens": 1, "ignore_eos": True, "stream": True}
        async with session.post(f"{url}/v1/completions", json=payload) as response:
            await response.read()
        return {"health check": health, "one token": time.perf_counter() - start}


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
