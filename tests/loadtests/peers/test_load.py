from __future__ import annotations

import asyncio
import json
import tomllib
from dataclasses import dataclass

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from loadtests.load.scenario import parse_scenario
from loadtests.peers.load import GENERATOR, Stage, payload, prompt_numbers, run_stage, same_answers, scenario, stage_of
from tests.loadtests.load.events import ANSWER, chunk, line


def test_prompts_differ_from_the_first_word_on() -> None:
    """No number comes twice in a session's length, and a round's numbers are the same for all servers."""
    numbers = prompt_numbers(3)
    found = [next(numbers) for _ in range(100_000)]
    assert len(set(found)) == len(found)
    assert all(100_000 <= number < 1_000_000 for number in found)
    again = prompt_numbers(3)
    assert found[:50] == [next(again) for _ in range(50)]
    prompt = json.loads(payload(found[0], None))["messages"][0]["content"]
    assert prompt.startswith(f"{found[0]} ")


def test_a_request_is_greedy_streamed_and_of_64_tokens() -> None:
    """A model's name is sent only where a server wants one, and fields can be replaced."""
    body = json.loads(payload(1, None))
    assert (body["stream"], body["temperature"], body["max_tokens"], "model" in body) == (True, 0, 64, False)
    body = json.loads(payload(1, "m", temperature=0.7, seed=5))
    assert (body["model"], body["temperature"], body["seed"]) == ("m", 0.7, 5)


def test_a_stage_is_a_scenario_of_the_load_generator() -> None:
    """A closed loop whose first fifth is not measured; prompts are different; the model is named if there is one."""
    read = parse_scenario(tomllib.loads(scenario(8, 30, 7, "m")))
    assert read.arrivals.model_dump() == {"type": "closed", "users": [8], "seconds": 24.0}
    assert (read.warmup_seconds, read.seed, read.model) == (6, 7, "m")
    assert read.work[0].prompt.startswith("{unique} is the number of this letter.")
    assert parse_scenario(tomllib.loads(scenario(1, 1, 0, None))).model is None


def test_a_stage_is_read_from_the_generators_report() -> None:
    """Rates and waits are those of the window, tokens are means of the answers."""
    figures = {
        "ended": 4.0,
        "completed": 5.0,
        "output_throughput": 123.456,
        "p50_ttft_ms": 10.04,
        "p95_ttft_ms": None,
        "total_output_tokens": 300,
        "total_input_tokens": 420,
        "generator_cpu_cores": 0.1234,
    }
    segment = {"repetitions": [figures], "errors": {"HTTP 500": 2}, "error_examples": ["HTTP 500: planted"]}
    found = stage_of(3, {"segments": [segment]}, 0.5)
    assert found == Stage(3, 123.46, 10.0, None, 60.0, 84.0, 4, 2, 0.123, 0.5, "HTTP 500: planted")


@dataclass
class _Process:
    """Stands for the server's process; the stub has none of its own."""

    runs: bool = True

    def alive(self) -> bool:
        return self.runs

    def cpu_seconds(self) -> float:
        return 0.0


class _Stub:
    """Answers with the seed it was sent, and odd seeds differently while others are answered; fails on request."""

    def __init__(self, closes: bool = False) -> None:
        self.closes = closes
        self.under_way = self.asked = 0
        self.peers: set[object] = set()
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._chat)
        self.server = TestServer(app)

    async def start(self) -> int:
        await self.server.start_server()
        assert self.server.port
        return self.server.port

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if body["messages"][0]["content"] == "fail":
            return web.json_response({"error": "planted"}, status=500)
        assert request.transport
        self.peers.add(request.transport.get_extra_info("peername"))
        self.under_way += 1
        self.asked += 1
        await asyncio.sleep(0.005)
        crowded = self.under_way > 1 and body.get("seed", 0) % 2 == 1
        answer = web.StreamResponse()
        await answer.prepare(request)
        for event in [chunk(f"{body.get('seed')} {crowded}"), *ANSWER[1:]]:
            await answer.write(line(event))
        self.under_way -= 1
        await answer.write_eof()
        if self.closes:
            request.transport.close()
        return answer


async def test_a_stage_is_measured_by_the_load_generator() -> None:
    """It asks until the time is up, lets answers end, and counts failures; a dead server ends it."""
    if not GENERATOR.exists():
        pytest.skip("NO LOAD WAS PUT ON THE STUB: locust is missing; run: make .venv-load/.done")
    stub = _Stub()
    port = await stub.start()
    stage = await asyncio.to_thread(run_stage, port, 3, 1.0, 0, None, _Process())
    assert (stage.failures, stage.failure, stage.clients) == (0, None, 3)
    assert stub.asked > 3
    assert stage.client_cpu > 0
    assert stub.under_way == 0
    await stub.server.close()
    dead = await asyncio.to_thread(run_stage, port, 2, 30.0, 0, None, _Process(runs=False))
    assert (dead.failures, dead.answers) == (0, 0)


async def test_answers_alone_and_among_others_are_compared_one_by_one() -> None:
    """The stub answers odd seeds differently in a crowd, so half of the answers are the same."""
    stub = _Stub()
    port = await stub.start()
    bodies = [payload(1, None, seed=seed) for seed in range(20)]
    assert await same_answers(port, bodies) == 10
    await stub.server.close()
