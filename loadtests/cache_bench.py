"""Compares answers per second from the response cache with bare aiohttp that answers a JSON POST with as many bytes.

All servers run at the same time, and the same client asks them one after the other in each round, on the same cores, so
that noise on the machine affects all of them alike:

    python -m loadtests.cache_bench --rounds 5

Redis is left out if none answers at ``REDIS_URL``. "In the service" is the median duration of a cache hit in the
service's own access log; "beside aiohttp" is the time of a hit less that of a bare answer, with one client.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from loadtests.load.http_answer import BadAnswer
from loadtests.peers.client import Client
from loadtests.service import ROOT, Service, free_port, running_service

NEW_TOKENS = 64
CLIENTS = (1, 8)
PATH = "/chat/completions"
BODY = json.dumps(
    {
        "messages": [{"role": "user", "content": "Write a long letter about the four seasons."}],
        "max_tokens": NEW_TOKENS,
        "temperature": 0,
    }
).encode()
STORES = ("memory", "sqlite", "redis")
BARE, UNCACHED = "bare aiohttp", "computed"

AIOHTTP = """
import sys
from aiohttp import web

answer = {"text": "x" * (int(sys.argv[2]) - 12)}


async def post(request):
    await request.json()
    return web.json_response(answer)


app = web.Application()
app.router.add_post("/chat/completions", post)
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None, access_log=None)
"""


def main() -> None:
    """Measure and print the result."""
    parser = argparse.ArgumentParser(description="Answers per second from the response cache, beside bare aiohttp.")
    parser.add_argument("--rounds", type=int, default=5, help="medians of so many are printed")
    parser.add_argument("--seconds", type=float, default=2.0, help="that each server is asked in a round")
    parser.add_argument("--json", action="store_true", help="print all figures instead of a table")
    options = parser.parse_args()
    with ExitStack() as stack:
        kept_in = {**{name: name for name in STORES}, UNCACHED: "off"}
        services = {
            name: stack.enter_context(running_service(LOG_FORMAT="json", RESPONSE_CACHE=store))
            for name, store in kept_in.items()
        }
        for service in services.values():
            service.wait("/readyz")
        keys, size = prime(services)
        bare = stack.enter_context(bare_aiohttp(size))
        ports = {BARE: bare, **{name: service.port for name, service in services.items()}}
        rates = asyncio.run(measure(ports, options.rounds, options.seconds))
        inside = {name: service_milliseconds(services[name]) for name in STORES if name in services}
        for name, key in keys.items():
            forget(services[name], key)
    if options.json:
        figures = {f"{name}, {clients} clients": found for (name, clients), found in rates.items()}
        print(json.dumps({"answers_per_second": figures, "service_ms": inside, "bytes": size}))
        return
    print(table(rates, inside, size))


def prime(services: dict[str, Service]) -> tuple[dict[str, str], int]:
    """Have every service compute the answer once. Services whose store does not keep it are removed.

    Returns:
        The cache key in each store, and the size of a cached answer in bytes.

    Raises:
        BadAnswer: an answer is wrong, or not cached although it must be.
    """
    keys: dict[str, str] = {}
    size = 0
    for name, service in list(services.items()):
        for _ in range(2):
            connection = service.connect()
            connection.request("POST", PATH, BODY, {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer, cache = response.read(), response.headers["X-Cache"]
            connection.close()
            if response.status != 200 or json.loads(answer)["usage"]["completion_tokens"] != NEW_TOKENS:
                raise BadAnswer(f"{name}: {response.status}: {answer[:300]!r}")
        if cache == "HIT":
            keys[name], size = response.headers["X-Cache-Key"], len(answer)
        elif name == "redis":
            print("Redis does not answer at REDIS_URL and is left out; start one: redis-server", file=sys.stderr)
            del services[name]
        elif name != UNCACHED:
            raise BadAnswer(f"{name}: the second answer is {cache}, not a hit")
    return keys, size


@contextmanager
def bare_aiohttp(size: int) -> Iterator[int]:
    """Run a bare aiohttp server that reads JSON and answers a given number of bytes of it; yield its port."""
    port = free_port()
    process = subprocess.Popen([sys.executable, "-c", AIOHTTP, str(port), str(size)], cwd=ROOT)
    try:
        while process.poll() is None:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.01)
        yield port
    finally:
        process.terminate()
        process.wait()


async def measure(ports: dict[str, int], rounds: int, seconds: float) -> dict[tuple[str, int], list[float]]:
    """Return answers per second by server and number of clients, one value per round."""
    rates: dict[tuple[str, int], list[float]] = defaultdict(list)
    for _ in range(rounds):
        for clients in CLIENTS:
            for name, port in ports.items():
                rates[name, clients].append(await rate(port, clients, seconds))
    return rates


async def rate(port: int, clients: int, seconds: float) -> float:
    """Return answers per second of clients that each send the next request as soon as they have an answer."""
    answered, end = 0, time.perf_counter() + seconds

    async def ask() -> None:
        nonlocal answered
        client = Client(port)
        while time.perf_counter() < end:
            response, _, _ = await client.request("POST", PATH, BODY)
            if response.status != 200:
                raise BadAnswer(f"{response.status}: {response.body()[:300]!r}")
            answered += 1
        client.close()

    began = time.perf_counter()
    await asyncio.gather(*(ask() for _ in range(clients)))
    return answered / (time.perf_counter() - began)


def service_milliseconds(service: Service) -> float:
    """Return the median duration of a cache hit in the service's middlewares, from its access log."""
    lines = (json.loads(line) for line in service.log.read_text().splitlines() if '"cache": "hit"' in line)
    return float(statistics.median(line["duration_ms"] for line in lines))


def forget(service: Service, key: str) -> None:
    """Remove the answer from the cache, because a file or a server would keep it."""
    connection = service.connect()
    connection.request("DELETE", f"/cache?prefix={key}")
    connection.getresponse().read()
    connection.close()


def table(rates: dict[tuple[str, int], list[float]], inside: dict[str, float], size: int) -> str:
    """Return the medians as a Markdown table."""
    middle = {place: statistics.median(found) for place, found in rates.items()}
    lines = [
        f"Answers of {NEW_TOKENS} tokens, {size} bytes.",
        "",
        "| served from | 1 client, answers/s | 8 clients, answers/s | of bare aiohttp | times computed | "
        "in the service, ms | beside aiohttp, ms |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name in dict.fromkeys(name for name, _ in middle):
        one, many = (middle[name, clients] for clients in CLIENTS)
        shares = f"{many / middle[BARE, CLIENTS[-1]]:.2f} | {many / middle[UNCACHED, CLIENTS[-1]]:,.0f}"
        took = f"{inside[name]:.2f}" if name in inside else "-"
        beside = f"{1000 / one - 1000 / middle[BARE, 1]:.2f}" if name in inside else "-"
        lines.append(f"| {name} | {one:,.1f} | {many:,.1f} | {shares} | {took} | {beside} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
