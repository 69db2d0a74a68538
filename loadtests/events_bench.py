"""Compares tokens per second through a queue, with one and with two workers, with the same work over HTTP.

    .venv/bin/python -m loadtests.events_bench --rounds 3

The brokers are ``nats-server`` and ``redis-server`` (Debian's packages), which this script starts and ends. All get the
same messages with seeds that give the same tokens: over HTTP from as many clients as a worker has concurrent messages,
through a queue from ``warmstart submit``, whose start is part of the time. They are measured one after the other in
each round, so that noise on the machine affects all alike. Two workers share the cores that one has alone.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit
from uuid import uuid4

from loadtests.load.http_answer import BadAnswer
from loadtests.service import ROOT, Service, free_port, running_service

PATIENCE = 600.0


def main() -> None:
    """Measure and print the result."""
    parser = argparse.ArgumentParser(description="Tokens per second through queues, beside HTTP.")
    parser.add_argument("--messages", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=32, help="new ones of each message")
    parser.add_argument("--concurrency", type=int, default=16, help="messages at once, in all")
    parser.add_argument("--rounds", type=int, default=3, help="medians of so many are printed")
    options = parser.parse_args()
    bodies = [
        json.dumps(
            {
                "prompt": f"Story {n} begins",
                "max_new_tokens": options.tokens,
                "min_new_tokens": options.tokens,
                "seed": n,
            }
        ).encode()
        for n in range(options.messages)
    ]
    with ExitStack() as stack:
        urls = [url for start in (nats, redis) if (url := stack.enter_context(start())) is not None]
        middle = measure(urls, bodies, options)
    print("| way | tokens/s | times HTTP |\n|---|---:|---:|")
    for name, rate in middle.items():
        print(f"| {name} | {rate:.0f} | {rate / middle['HTTP, one process']:.2f} |")


def measure(urls: list[str], bodies: list[bytes], options: argparse.Namespace) -> dict[str, float]:
    """Return the median tokens per second of each transport."""
    seconds: dict[str, list[float]] = {"HTTP, one process": []}
    tokens = options.messages * options.tokens
    for _ in range(options.rounds):
        with running_service(RESPONSE_CACHE="off") as service:
            service.wait("/readyz")
            seconds["HTTP, one process"].append(over_http(service, bodies, options.concurrency, tokens))
        for url in urls:
            for workers in (1, 2):
                name = f"{urlsplit(url).scheme}, {workers} worker{'s' * (workers > 1)}"
                with queue(url, workers, options.concurrency) as arguments:
                    seconds.setdefault(name, []).append(over_queue(url, arguments, bodies, tokens))
    return {name: tokens / statistics.median(found) for name, found in seconds.items()}


@contextmanager
def nats() -> Iterator[str | None]:
    """Start a NATS server and yield its URL; None if it is not installed."""
    port = free_port()
    with TemporaryDirectory() as folder:
        yield from broker("nats-server", "-js", "-a", "127.0.0.1", "-p", str(port), "-sd", folder, port=port)


@contextmanager
def redis() -> Iterator[str | None]:
    """Start a Redis server and yield its URL; None if it is not installed."""
    port = free_port()
    with TemporaryDirectory() as folder:
        yield from broker("redis-server", "--port", str(port), "--save", "", "--dir", folder, port=port)


def broker(*command: str, port: int) -> Iterator[str | None]:
    """Start a server, and yield its URL once it listens; None if it is not installed."""
    if shutil.which(command[0]) is None:
        print(f"{command[0]} is not installed, and left out", file=sys.stderr)
        yield None
        return
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.02)
        yield f"{command[0].removesuffix('-server')}://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def over_http(service: Service, bodies: list[bytes], clients: int, tokens: int) -> float:
    """Return the seconds for all bodies over HTTP.

    Raises:
        BadAnswer: tokens are missing.
    """

    def ask(body: bytes) -> int:
        connection = service.connect()
        try:
            connection.request("POST", "/complete", body, {"Content-Type": "application/json"})
            return completion_tokens(connection.getresponse().read())
        finally:
            connection.close()

    with ThreadPoolExecutor(clients) as pool:
        ask(bodies[0])
        started = time.perf_counter()
        check(sum(pool.map(ask, bodies)), tokens)
        return time.perf_counter() - started


@contextmanager
def queue(url: str, workers: int, concurrency: int) -> Iterator[list[str]]:
    """Start workers on a new queue; once they are ready, yield the arguments of ``submit`` that name the queue."""
    own = f"bench-{uuid4().hex[:8]}"
    arguments = ["--results", f"{own}-results", "--dead", f"{own}-dead"]
    with ExitStack() as stack:
        threads = {"NUM_THREADS": str(max(1, (os.cpu_count() or 1) // workers))}
        for _ in range(workers):
            command = ["consume", url, "--stream", own, *arguments, "--concurrency", str(concurrency // workers)]
            settings = {"RESPONSE_CACHE": "off", "IDEMPOTENCY": "memory"} | threads
            stack.enter_context(running_service(*command, **settings)).wait("/readyz")
        yield ["--stream-name", own, *arguments]


def over_queue(url: str, arguments: list[str], bodies: list[bytes], tokens: int) -> float:
    """Return the seconds for all bodies through the queue.

    Raises:
        BadAnswer: tokens are missing.
    """
    program = "import sys, server; sys.exit(server.main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "submit", url, "complete", "-", *arguments]
    submit(command, bodies[:1])
    started = time.perf_counter()
    answers = submit(command, bodies)
    took = time.perf_counter() - started
    check(sum(map(completion_tokens, answers)), tokens)
    return took


def submit(command: list[str], bodies: list[bytes]) -> list[bytes]:
    """Run ``warmstart submit`` and return the answers, in the order of the bodies."""
    lines = b"\n".join(bodies)
    run = subprocess.run(command, cwd=ROOT, input=lines, stdout=subprocess.PIPE, check=True, timeout=PATIENCE)
    return run.stdout.splitlines()


def completion_tokens(answer: bytes) -> int:
    """Return the number of generated tokens of one answer."""
    return int(json.loads(answer)["usage"]["completion_tokens"])


def check(found: int, wanted: int) -> None:
    """Check that all tokens were generated.

    Raises:
        BadAnswer: tokens are missing.
    """
    if found != wanted:
        raise BadAnswer(f"{found} tokens of {wanted}")


if __name__ == "__main__":
    main()
