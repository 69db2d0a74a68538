"""The closed-loop load of DESIGN section 4: each client sends its next request as soon as it has its answer."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from loadtests.answers import BadAnswer
from loadtests.peers.client import Client, Streamed
from loadtests.peers.process import busy_seconds
from loadtests.thresholds import percentile

PATH = "/v1/chat/completions"
NEW_TOKENS = 64
SETTLE = 0.2  # share of a stage that is not counted, because all its clients start at the same time
MANY = 16  # clients of the determinism check
_PAUSE_SECONDS = 0.2  # after a failure, so that a dead server is not flooded with requests
# About 85 tokens with the model's template. The number comes first, so that no prefix cache can help.
PROMPT = (
    "{number} is the number of this letter. Dear friend, I have moved to a small town by the sea and keep a garden "
    "behind the house. Please write me a long letter about the seasons, the weather and the birds that I should expect."
)


@dataclass(frozen=True)
class Stage:
    """The measurements with one number of clients. None: there was nothing to measure."""

    clients: int
    tokens_per_second: float
    ttft_p50_ms: float | None
    ttft_p95_ms: float | None
    tokens_per_answer: float | None
    prompt_tokens_p50: float | None
    answers: int
    failures: int
    client_cpu: float
    """The number of cores that this client used."""
    others_cpu: float
    """The number of cores that other processes used; if it is high, the measurements are useless."""
    failure: str | None = None
    """The first failure's message."""


class Watched(Protocol):
    """The process of a server under load."""

    def alive(self) -> bool:
        """Return whether it still runs."""

    def cpu_seconds(self) -> float:
        """Return the processor time that it has used."""


def prompt_numbers(seed: int) -> Iterator[int]:
    """Yield six-digit numbers endlessly, without repeats in the first 900,000; the same for the same seed."""
    position = random.Random(seed).randrange(900_000)
    while True:  # the step and 900,000 are coprime, so all are visited before one repeats
        position = (position + 293_003) % 900_000
        yield 100_000 + position


def payload(number: int, model: str | None, **more: Any) -> bytes:
    """Return a streamed request as JSON.

    Args:
        number: a number that makes the prompt different from all others.
        model: the model name to send, for servers that require one.
        more: fields that override the defaults.
    """
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": PROMPT.format(number=number)}],
        "max_tokens": NEW_TOKENS,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return json.dumps(body | ({"model": model} if model else {}) | more).encode()


async def run_stage(port: int, clients: int, seconds: float, body: Callable[[], bytes], server: Watched) -> Stage:
    """Load a server for some seconds, wait for the last answers, and return the measurements.

    Args:
        port: the server's port on the loopback.
        clients: the number of concurrent clients; they stop if the server dies.
        seconds: how long they send requests; the first fifth is not counted.
        body: returns the next request.
        server: the server's process.
    """
    began = time.perf_counter()
    start, end = began + SETTLE * seconds, began + seconds
    answers: list[Streamed] = []
    failures: list[str] = []

    async def loop() -> None:
        client = Client(port)
        while time.perf_counter() < end and server.alive():
            try:
                answers.append(await client.ask(PATH, body()))
            except (BadAnswer, OSError) as error:
                failures.append(str(error) or repr(error))
                await asyncio.sleep(_PAUSE_SECONDS)
        client.close()

    def used() -> tuple[float, float, float]:
        return time.process_time(), server.cpu_seconds(), busy_seconds()

    async with asyncio.TaskGroup() as tasks:
        for _ in range(clients):
            tasks.create_task(loop())
        await asyncio.sleep(start - time.perf_counter())
        before, since = used(), time.perf_counter()
        await asyncio.sleep(end - time.perf_counter())
        lasted = time.perf_counter() - since
        mine, its, all_of_it = ((now - earlier) / lasted for now, earlier in zip(used(), before, strict=True))
    return summary(clients, answers, failures, start, end, mine, max(0.0, all_of_it - its - mine))


def summary(
    clients: int,
    answers: Sequence[Streamed],
    failures: Sequence[str],
    start: float,
    end: float,
    client_cpu: float,
    others_cpu: float,
) -> Stage:
    """Return a stage's statistics: tokens received between two moments, and latencies of requests started then."""
    waits = [answer.first for answer in answers if start <= answer.began < end and answer.first is not None]
    p50, p95 = percentile(waits, 50), percentile(waits, 95)
    return Stage(
        clients=clients,
        tokens_per_second=round(sum(answer.tokens_between(start, end) for answer in answers) / (end - start), 2),
        ttft_p50_ms=None if p50 is None else round(p50 * 1000, 1),
        ttft_p95_ms=None if p95 is None else round(p95 * 1000, 1),
        tokens_per_answer=round(statistics.mean(a.completion_tokens for a in answers), 1) if answers else None,
        prompt_tokens_p50=percentile([answer.prompt_tokens for answer in answers], 50),
        answers=len(answers),
        failures=len(failures),
        client_cpu=round(client_cpu, 3),
        others_cpu=round(others_cpu, 3),
        failure=failures[0][:300] if failures else None,
    )


async def same_answers(port: int, bodies: Sequence[bytes]) -> int:
    """Return how many requests get the same text alone and among ``MANY`` clients in another order.

    Raises:
        BadAnswer: a request is not answered.
        OSError: there is no connection.
    """

    async def answered(clients: int, order: Sequence[int]) -> dict[int, str]:
        waiting, texts = iter(order), {}

        async def loop() -> None:
            client = Client(port)
            for index in waiting:  # an iterator that all clients share
                texts[index] = (await client.ask(PATH, bodies[index])).text
            client.close()

        await asyncio.gather(*(loop() for _ in range(clients)))
        return texts

    order = list(range(len(bodies)))
    alone = await answered(1, order)
    random.Random(7).shuffle(order)
    among = await answered(MANY, order)
    return sum(alone[index] == among[index] for index in order)
