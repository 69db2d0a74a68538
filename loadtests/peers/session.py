"""Measures one server: starts it, sends it requests, loads it, and ends it."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from loadtests.load.answer import Streamed
from loadtests.load.http_answer import BadAnswer
from loadtests.peers.client import Client
from loadtests.peers.load import PATH, payload, prompt_numbers, run_stage, same_answers
from loadtests.peers.process import Running, running
from loadtests.peers.report import Run
from loadtests.peers.servers import Server
from loadtests.service import ROOT, free_port

START_SECONDS = 600.0
QUESTION = "What is the capital of France?"
_RETRY_SECONDS = 0.01


def turn(server: Server, clients: Sequence[int], seconds: float, seed: int) -> Run:
    """Start a server, load it stage by stage, and end it.

    Args:
        server: the server.
        clients: the number of clients of each stage.
        seconds: the length of a stage.
        seed: of the prompts.

    Returns:
        The measurements; a failure is in ``error``.
    """
    run = Run(server.key, server.name)
    try:
        with started(server, run, temperature=0.0) as (port, child):
            asyncio.run(Client(port).ask(PATH, payload(next(prompt_numbers(seed)), server.model)))  # warm
            for count in clients:
                if count <= server.most_clients:
                    run.stages.append(run_stage(port, count, seconds, seed, server.model, child))
                    run.peak_rss = max(run.peak_rss or 0, child.peak_rss())
                    if not child.alive():
                        raise RuntimeError(f"crashed with {count} clients:\n{child.said()}")
    except (RuntimeError, BadAnswer, OSError) as error:
        run.error = str(error)
    return run


def determinism_turn(server: Server, requests: int, numbers: Iterator[int]) -> Run:
    """Start a server anew and count the sampled, seeded answers that are identical alone and among others."""
    run = Run(server.key, server.name)
    try:
        # All requests sample, because transformers' continuous batching keeps the first request's temperature.
        with started(server, run, temperature=0.7) as (port, _):
            bodies = [payload(next(numbers), server.model, temperature=0.7, seed=index) for index in range(requests)]
            run.identical = asyncio.run(same_answers(port, bodies))
    except (RuntimeError, BadAnswer, OSError) as error:
        run.error = str(error)
    return run


@contextmanager
def started(server: Server, run: Run, temperature: float) -> Iterator[tuple[int, Running]]:
    """Start a server on a free port, and record the run's times up to its first answer."""
    port = free_port()
    command, environment = server.started_on(port)
    with (
        tempfile.TemporaryDirectory() as folder,
        running(command, environment, ROOT, Path(folder) / "log") as child,
    ):
        run.livez = round(child.until(lambda: asyncio.run(_status(port, server.livez)) > 0, START_SECONDS, "live"), 3)
        question = payload(
            0,
            server.model,
            messages=[{"role": "user", "content": QUESTION}],
            max_tokens=16,
            temperature=temperature,
            seed=0,
        )
        answer = asyncio.run(_first_answer(port, question, child))
        run.first_token = round((answer.times or (answer.ended,))[0] - child.started, 3)
        run.first_answer = round(answer.ended - child.started, 3)
        run.answer, run.peak_rss = answer.text, child.peak_rss()
        if server.info:
            response, _, _ = asyncio.run(Client(port).request("GET", server.info))
            run.info = json.loads(response.body())
        yield port, child


async def _status(port: int, path: str) -> int:
    """Return an HTTP status; 0 if there is no answer."""
    client = Client(port)
    try:
        async with asyncio.timeout(5):
            response, _, _ = await client.request("GET", path)
            return response.status
    except (OSError, TimeoutError, BadAnswer):
        return 0
    finally:
        client.close()


async def _first_answer(port: int, body: bytes, child: Running) -> Streamed:
    """Send a question until it is answered.

    Raises:
        RuntimeError: the process has ended, or the time is up.
    """
    client, said = Client(port), ""
    try:
        while child.alive() and time.perf_counter() - child.started < START_SECONDS:
            try:
                return await client.ask(PATH, body, START_SECONDS)
            except (BadAnswer, OSError) as error:  # still loading
                said = str(error)
                await asyncio.sleep(_RETRY_SECONDS)
    finally:
        client.close()
    raise RuntimeError(f"no answer: {said}\n{child.said()}")
