from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from loadtests.peers.client import Streamed
from loadtests.peers.load import Stage, payload, prompt_numbers, run_stage, same_answers, summary
from tests.loadtests.peers.events import ANSWER, chunk, line


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


def test_a_stage_counts_tokens_that_came_and_requests_that_began_in_it() -> None:
    """What came while it settled, or after its end, does not count; means and failures are of all answers."""
    answers = [
        Streamed(0.0, 6.0, (2.0, 6.0), 80, 10, ""),  # began while it settled: 5 tokens count
        Streamed(5.0, 7.0, (5.5, 7.0), 84, 10, ""),
        Streamed(9.0, 12.0, (10.5, 12.0), 84, 40, ""),  # its wait counts, its tokens came too late
    ]
    stage = summary(3, answers, ["planted", "later"], 5.0, 10.0, 0.25, 0.5)
    assert stage == Stage(3, 3.0, 500.0, 1500.0, 20, 84, 3, 2, 0.25, 0.5, "planted")
    assert summary(1, [], [], 0.0, 1.0, 0.0, 0.0) == Stage(1, 0.0, None, None, None, None, 0, 0, 0.0, 0.0)


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
        self.under_way = 0
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


@pytest.mark.parametrize("closes", [False, True])
async def test_clients_ask_until_the_time_is_up_and_let_answers_end(closes: bool) -> None:
    """Connections are kept while the server keeps them; one that it closes unannounced is opened again."""
    stub = _Stub(closes)
    stage = await run_stage(await stub.start(), 3, 0.5, lambda: payload(1, None), _Process())
    assert (stage.failures, stage.failure, stage.clients) == (0, None, 3)
    assert stage.answers > 3
    assert stage.tokens_per_second > 0
    assert (len(stub.peers) == 3) is not closes
    assert stub.under_way == 0
    await stub.server.close()


async def test_failures_are_counted_and_told() -> None:
    """The first one's message is kept; a server that died stops the clients."""
    stub = _Stub()
    port = await stub.start()
    body = payload(1, None, messages=[{"role": "user", "content": "fail"}])
    stage = await run_stage(port, 2, 0.3, lambda: body, _Process())
    assert stage.failures >= 2
    assert stage.answers == 0
    assert stage.failure is not None
    assert "500" in stage.failure
    await stub.server.close()
    stage = await run_stage(port, 2, 0.1, lambda: body, _Process(runs=False))
    assert (stage.failures, stage.answers) == (0, 0)


async def test_answers_alone_and_among_others_are_compared_one_by_one() -> None:
    """The stub answers odd seeds differently in a crowd, so half of the answers are the same."""
    stub = _Stub()
    port = await stub.start()
    bodies = [payload(1, None, seed=seed) for seed in range(20)]
    assert await same_answers(port, bodies) == 10
    await stub.server.close()
