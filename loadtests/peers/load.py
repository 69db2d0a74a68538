"""The closed-loop load of DESIGN section 4: each client sends its next request as soon as it has its answer."""

from __future__ import annotations

import asyncio
import json
import random
import resource
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from loadtests.peers.client import Client
from loadtests.peers.process import busy_seconds
from loadtests.service import ROOT

PATH = "/v1/chat/completions"
NEW_TOKENS = 64
SETTLE = 0.2  # share of a stage that is not counted, because all its clients start at the same time
MANY = 16  # clients of the determinism check
_POLL_SECONDS = 0.1
GENERATOR = ROOT / ".venv-load" / "bin" / "python"
"""The environment with Locust."""
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
    prompt_tokens: float | None
    answers: int
    failures: int
    client_cpu: float
    """The number of cores that the load generator used."""
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


def run_stage(port: int, clients: int, seconds: float, seed: int, model: str | None, server: Watched) -> Stage:
    """Load a server for some seconds with ``loadtests.load``, wait for the last answers, and return the measurements.

    Args:
        port: the server's port on the loopback.
        clients: the number of concurrent clients; they stop if the server dies.
        seconds: how long they send requests; the first fifth is not counted.
        seed: of the scenario.
        model: the model name to send, for servers that require one.
        server: the server's process.

    Raises:
        RuntimeError: the generator failed though the server lives.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "stage.toml"
        file.write_text(scenario(clients, seconds, seed, model))
        began, before = time.perf_counter(), _others(server)
        report = run_generator(str(file), port, Path(folder) / "out", server)
        others = (_others(server) - before) / (time.perf_counter() - began)
    if report is None:
        return Stage(clients, 0.0, None, None, None, None, 0, 0, 0.0, 0.0)
    return stage_of(clients, report, max(0.0, others))


def run_generator(name: str, port: int, out: Path, server: Watched, *options: str) -> dict[str, Any] | None:
    """Run the load generator against a server of this machine, and end it if the server dies.

    Args:
        name: the scenario.
        port: the server's port.
        out: the folder of its report.
        server: the server's process.
        options: more options.

    Returns:
        The report; None if the server died before the first stage ended.

    Raises:
        RuntimeError: the generator failed though the server lives.
    """
    command = [
        str(GENERATOR),
        "-m",
        "loadtests.load",
        name,
        f"--host=http://127.0.0.1:{port}",
        f"--out={out}",
        *options,
    ]
    with subprocess.Popen(
        [*command, "--quiet"], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as generator:
        while server.alive() and generator.poll() is None:
            time.sleep(_POLL_SECONDS)
        generator.terminate()
        _, said = generator.communicate()
    if (out / "report.json").exists():
        report: dict[str, Any] = json.loads((out / "report.json").read_text())
        return report
    if server.alive():
        raise RuntimeError(f"the load generator failed: {said.strip()}")
    return None


def scenario(clients: int, seconds: float, seed: int, model: str | None) -> str:
    """Return a stage's scenario as TOML."""
    return "\n".join(
        [
            'name = "peers"',
            f"seed = {seed}",
            f"warmup_seconds = {seconds * SETTLE}",
            *([f"model = {json.dumps(model)}"] if model else []),
            "[arrivals]",
            'type = "closed"',
            f"users = {clients}",
            f"seconds = {seconds * (1 - SETTLE)}",
            "[[work]]",
            'kind = "chat"',
            f"prompt = {json.dumps(PROMPT.replace('{number}', '{unique}'))}",
            f"output_tokens = {NEW_TOKENS}",
        ]
    )


def stage_of(clients: int, report: dict[str, Any], others_cpu: float) -> Stage:
    """Return a stage's measurements from the generator's report."""
    (segment,) = report["segments"]
    figures = segment["repetitions"][0]
    answers, failures = int(figures["ended"]), sum(segment["errors"].values())
    completed = figures["completed"]

    def rounded(name: str, digits: int = 1) -> float | None:
        return None if figures[name] is None else round(figures[name], digits)

    return Stage(
        clients=clients,
        tokens_per_second=round(figures["output_throughput"], 2),
        ttft_p50_ms=rounded("p50_ttft_ms"),
        ttft_p95_ms=rounded("p95_ttft_ms"),
        tokens_per_answer=round(figures["total_output_tokens"] / completed, 1) if completed else None,
        prompt_tokens=round(figures["total_input_tokens"] / completed, 1) if completed else None,
        answers=answers,
        failures=failures,
        client_cpu=rounded("generator_cpu_cores", 3) or 0.0,
        others_cpu=round(others_cpu, 3),
        failure=segment["error_examples"][0][:300] if failures else None,
    )


def _others(server: Watched) -> float:
    """Return the processor time of all processes but the server, this one and its ended children."""
    mine = resource.getrusage(resource.RUSAGE_CHILDREN)
    return busy_seconds() - server.cpu_seconds() - time.process_time() - mine.ru_utime - mine.ru_stime


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
