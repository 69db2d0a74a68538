"""The fast engine's streams, on a runner without a model, with real event loops and threads."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import threading
from collections import Counter
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import aiohttp
import pytest

from handlers.context import Context
from runtime.engine.engine_thread import EngineThread, Request
from runtime.errors import Draining
from runtime.model.catalogue import ModelSpec
from runtime.model_pool.registry import Registry
from runtime.types import Job, Message, Token
from tests.support.engines import FOREVER, Made, Runner, collect, expected, ids, job, mixed, planted, said
from tests.support.fakes import check_pool, fake_context, serving, until

# What comes out


@pytest.mark.parametrize("speculate", [0, 4])
async def test_requests_at_once_get_what_they_would_alone(make: Any, speculate: int) -> None:
    """Sixty mixed requests run together, in few steps, and each gets exactly its own tokens."""
    eos = frozenset({7})
    made = make(eos=eos, speculate=speculate)
    jobs = mixed(60)
    results = await asyncio.gather(*(collect(made.engine, one) for one in jobs))
    for one, rows in zip(jobs, results, strict=True):
        assert ids(rows) == expected(one, eos)
        for row in rows:
            assert [token.finish_reason for token in row[:-1]] == [None] * (len(row) - 1)
            assert row[-1].finish_reason == ("stop" if row[-1].id in eos else "length")
            assert all((token.logprob is None) == (one.params.logprobs is None) for token in row)
            assert {len(token.top_logprobs) for token in row} == {one.params.logprobs or 0}
    assert max(made.runner.sizes) > 4
    await until(lambda: made.idle)
    check_pool(made.pool, [])


async def test_a_request_joins_those_that_run(make: Any) -> None:
    """A late request gets its tokens between those of one that began before and ends after it."""
    made = make(Runner(blocks=2048, gate=threading.Semaphore(0)))
    async with aclosing(made.engine.stream([job(tokens=FOREVER)])) as first:
        made.runner.gate.release(3)
        for _ in range(3):
            await anext(first)
        second = asyncio.create_task(collect(made.engine, job((9, 9), 2)))
        await until(lambda: len(made.engine._thread._unfinished) == 2)
        made.runner.gate.release(4)
        assert len((await second)[0]) == 2
        assert (await anext(first)).finish_reason is None
    assert made.runner.sizes[:3] == [1, 1, 1]
    assert 2 in made.runner.sizes


async def test_the_jobs_of_a_request_run_together(make: Any) -> None:
    """Rows are numbered job by job, sequence by sequence, and come step by step, not one after the other."""
    made = make()
    jobs = [job((1, 2), 4, n=2, temperature=1, seed=3), job((5,), 2)]
    order = [token.sequence async for token in made.engine.stream(jobs)]
    assert ids(await collect(made.engine, *jobs)) == [*expected(jobs[0]), *expected(jobs[1])]
    assert order.index(2) < len(order) - 1 - order[::-1].index(0)


async def test_cached_tokens_are_told_once(make: Any) -> None:
    """The first token of a prompt's first sequence tells how much of it was in the prefix cache, and no other."""
    made = make()
    one = job(range(11), 4, n=2, temperature=1, seed=1)
    assert [[token.cached_tokens for token in row] for row in await collect(made.engine, one)] == [[0] * 4] * 2
    again = await collect(made.engine, one, job(range(3, 9), 2))
    assert [[token.cached_tokens for token in row] for row in again] == [[8, 0, 0, 0], [0] * 4, [0, 0]]
    assert made.value("prefix_cache_queries_total") == 11 + 11 + 6
    assert made.value("prefix_cache_hits_total") == 8
    assert made.value("prompt_tokens_total") == 28


async def test_tokens_that_come_in_thousands_leave_turns_to_other_tasks(make: Any) -> None:
    """Of a scored text a step gives hundreds of tokens at once; the event loop runs other tasks between them."""
    made = make(Runner(blocks=2048, max_tokens=1024), token_budget=1024)
    forced = job((1, 2), 600, forced=tuple(5 + i % 9 for i in range(600)))
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    seen: Counter[int] = Counter()
    async with aclosing(made.engine.stream([forced])) as stream:
        async for _ in stream:
            seen[turns] += 1
    task.cancel()
    assert sum(seen.values()) == 600
    assert len(made.runner.sizes) < 10  # so that they did come in hundreds
    assert max(seen.values()) <= 64


async def test_without_a_seed_no_two_are_alike(make: Any) -> None:
    """A request without a seed draws a new one each time; the sequences of one request differ anyway."""
    engine = make().engine
    one = job((1,), 20, temperature=1, n=2)
    rows = [*ids(await collect(engine, one)), *ids(await collect(engine, one))]
    assert len({tuple(row) for row in rows}) == 4


# Where a text ends


async def test_a_stop_string_ends_its_sequence_only(make: Any) -> None:
    """The sequence that says it ends before it and is taken out of the batch; its neighbour goes on to its limit."""
    made = make(Runner(blocks=2048, gate=threading.Semaphore(0)))
    plain = [job((1, 2, 3), 12), job((4, 5), 12)]
    texts = [made.tokenizer.decode(expected(one)[0], skip_special_tokens=True) for one in plain]
    stop = next(texts[0][i : i + 2] for i in range(2, 6) if texts[0][i : i + 2] not in texts[1])
    stopped = [replace(one, params=replace(one.params, stop=("zz", stop))) for one in plain]
    task = asyncio.create_task(collect(made.engine, *stopped))
    for step in range(12):
        made.runner.gate.release()
        await until(lambda step=step: len(made.runner.sizes) > step)
    rows = await task
    end = texts[0].index(stop)
    assert [said(row) for row in rows] == [texts[0][:end], texts[1]]
    assert len(rows[0]) == end + 2
    assert [row[-1].finish_reason for row in rows] == ["stop", "length"]
    assert made.runner.sizes[-1] == 1, "the stopped sequence was computed to the end"
    assert made.value("request_success_total", finished_reason="stop") == 1
    assert made.value("request_success_total", finished_reason="length") == 1
    assert made.value("generation_tokens_total") == len(rows[0]) + len(rows[1])


async def test_stop_tokens_and_ignored_end_tokens(make: Any) -> None:
    """A stop token ends its sequence without its text; a sequence that ignores end tokens goes on behind them."""
    made = make(eos=frozenset({7}))
    plain, ignoring = job(tokens=40), job(tokens=40, ignore_eos=True)
    whole = expected(ignoring)[0]
    stopping = job(tokens=40, ignore_eos=True, stop_token_ids=(whole[3],))
    end = whole.index(whole[3]) + 1
    rows = await collect(made.engine, plain, ignoring, stopping)
    assert ids(rows) == [expected(plain, frozenset({7}))[0], whole, whole[:end]]
    assert [row[-1].finish_reason for row in rows[1:]] == ["length", "stop"]
    assert rows[2][-1].text == ""


async def test_what_comes_after_a_stop_string_is_dropped(make: Any) -> None:
    """Tokens that were computed before the engine heard of the stop string are neither shown nor counted."""
    made = make()
    text = made.tokenizer.decode(expected(job(tokens=200))[0], skip_special_tokens=True)
    one = job(tokens=200, stop=(text[1:3],))
    async with aclosing(made.engine.stream([one])) as stream:
        first = await anext(stream)
        await until(lambda: made.idle)  # all of them are there by now
        rest = [token async for token in stream]
    assert said([first, *rest]) == text[:1]
    assert 1 + len(rest) == 3
    assert rest[-1].finish_reason == "stop"
    assert made.value("generation_tokens_total") == 3


async def test_a_stop_string_counts_from_the_least_length_on(make: Any) -> None:
    """Before min_new_tokens a stop string is text like any other."""
    made = make()
    text = made.tokenizer.decode(expected(job(tokens=30))[0], skip_special_tokens=True)
    stop = next(letter for letter in text[:4] if letter in text[4:])
    (row,) = await collect(made.engine, job(tokens=30, stop=(stop,), min_new_tokens=5))
    assert said(row) == text[: text.index(stop, 4)]
    assert row[-1].finish_reason == "stop"


async def test_an_end_token_ends_a_sequence(make: Any) -> None:
    """It is handed out without text of its own, and with what was held back for a stop string that did not come."""
    free = expected(job(tokens=30))[0]
    end = next(i for i in range(4, 30) if free[i] not in free[:i])
    made = make(eos=frozenset({free[end]}))
    text = made.tokenizer.decode(free[:end], skip_special_tokens=True)
    (row,) = await collect(made.engine, job(tokens=30, stop=(text[-1] + "zz",)))
    assert [token.id for token in row] == free[: end + 1]
    assert said(row) == text
    assert row[-1].text == text[-1]
    assert row[-1].finish_reason == "stop"


async def test_text_held_back_at_the_limit_is_let_go(make: Any) -> None:
    """A stop string that had begun when the limit came was none."""
    made = make()
    text = made.tokenizer.decode(expected(job(tokens=6))[0], skip_special_tokens=True)
    (row,) = await collect(made.engine, job(tokens=6, stop=(text[-2:] + "z",)))
    assert said(row) == text
    assert row[-1].finish_reason == "length"


# Clients that go


@pytest.mark.parametrize("phase", ["queued", "prefilling", "decoding"])
async def test_closing_a_stream_frees_it_within_a_step(make: Any, phase: str) -> None:
    """After the step under way nothing of the request is left, wherever it was."""
    made = make(Runner(blocks=2048, max_tokens=16, gate=threading.Semaphore(0)), max_rows=1)
    before = asyncio.create_task(collect(made.engine, job(tokens=FOREVER)))
    await until(lambda: not made.engine._thread._waiting_interactive and made.engine._thread._unfinished)
    if phase != "queued":
        before.cancel()
        made.runner.gate.release()
        await until(lambda: made.idle)
    mine = asyncio.create_task(collect(made.engine, job(range(40), FOREVER)))
    steps = {"queued": 0, "prefilling": 2, "decoding": 6}[phase]
    begun = len(made.runner.sizes)
    for _ in range(steps):
        made.runner.gate.release()
    await until(
        lambda: len(made.runner.sizes) == begun + steps and len(made.engine._thread._unfinished) == 1 + (not steps)
    )
    held = made.pool.used
    assert held > 0
    mine.cancel()
    with pytest.raises(asyncio.CancelledError):
        await mine
    if phase == "queued":
        assert made.pool.used == held
        assert not made.engine._thread._waiting_interactive
        before.cancel()
    done = len(made.runner.sizes)
    made.runner.gate.release()
    await until(lambda: made.idle)
    assert len(made.runner.sizes) <= done + 1
    assert made.pool.used == 0
    assert made.value("request_cancelled_total") == 2


async def test_a_stream_that_was_never_begun_costs_nothing(make: Any) -> None:
    """Work begins with the first item that is asked for."""
    made = make()
    await made.engine.stream([job()]).aclose()
    assert made.idle
    assert made.runner.sizes == []


async def test_a_loop_that_is_gone_takes_its_requests_along(make: Any) -> None:
    """A loop closed in the middle of a stream stops that stream's work, and nobody else's."""
    made = make(Runner(blocks=2048, pause=0.001))
    loop = asyncio.new_event_loop()
    stream = made.engine.stream([job(tokens=FOREVER)])
    await asyncio.to_thread(loop.run_until_complete, anext(stream))
    assert not made.idle
    loop.close()
    await until(lambda: made.idle)
    assert len((await collect(made.engine, job()))[0]) == 5


async def test_two_event_loops_at_once(make: Any) -> None:
    """Callers on different loops and threads share the batch, and each gets its own."""
    made = make(Runner(blocks=2048, pause=0.001))
    jobs = mixed(24, seed=2)

    async def half(which: int) -> list[list[list[Token]]]:
        return await asyncio.gather(*(collect(made.engine, one) for one in jobs[which::2]))

    other = asyncio.create_task(asyncio.to_thread(asyncio.run, half(1)))
    for which, results in ((0, await half(0)), (1, await other)):
        assert [ids(rows) for rows in results] == [expected(one) for one in jobs[which::2]]
    assert max(made.runner.sizes) > 4


async def test_a_step_wakes_a_loop_once(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many requests share a step, their loop is called once for it."""
    made = make(Runner(blocks=2048, gate=threading.Semaphore(0)))
    tasks = [asyncio.create_task(collect(made.engine, job((i,), 20))) for i in range(8)]
    await until(lambda: len(made.engine._thread._unfinished) == 8)
    calls: list[str] = []
    loop, thread = asyncio.get_running_loop(), made.engine._thread.thread
    original = loop.call_soon_threadsafe

    def counted(*args: Any, **kwargs: Any) -> Any:
        if threading.current_thread() is thread:
            calls.append("call")
        return original(*args, **kwargs)

    monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
    made.runner.gate.release(1000)
    await asyncio.gather(*tasks)
    assert sum(made.runner.sizes) >= 160
    assert len(calls) <= len(made.runner.sizes)


# The end


async def test_closing_lets_admitted_requests_finish(make: Any) -> None:
    """With grace, what was admitted finishes, queued or not; what comes after is refused."""
    made = make(Runner(blocks=2048, gate=threading.Semaphore(0)), max_rows=1)
    tasks = [asyncio.create_task(collect(made.engine, job(tokens=12))) for _ in range(3)]
    await until(lambda: len(made.engine._thread._unfinished) == 3)
    closing = asyncio.create_task(asyncio.to_thread(made.engine.close, 30))
    await until(lambda: made.engine._closing)
    for refused in (collect(made.engine, job()), made.engine.encode("x")):
        with pytest.raises(Draining):
            await refused
    made.runner.gate.release(1000)
    assert [len(rows[0]) for rows in await asyncio.gather(*tasks)] == [12, 12, 12]
    await closing
    assert made.runner.closed
    assert not made.engine.alive
    with pytest.raises(Draining):
        await collect(made.engine, job())
    assert made.value("request_rejected_total", reason="draining") == 3


async def test_closing_ends_what_does_not_finish_in_time(make: Any) -> None:
    """Past the grace, running and waiting requests end with a clear error, and the threads are gone."""
    before = set(threading.enumerate())
    made = make(Runner(blocks=2048, pause=0.001), max_rows=1)
    tasks = [asyncio.create_task(collect(made.engine, job(tokens=4000))) for _ in range(3)]
    await until(lambda: len(made.engine._thread._unfinished) == 3)
    await asyncio.to_thread(made.engine.close, 0.05)
    errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(error) for error in errors] == [Draining] * 3
    assert {thread.name for thread in set(threading.enumerate()) - before if "engine" in thread.name} == set()
    assert made.value("num_requests_running") == 0 == made.value("kv_cache_usage_perc")


async def test_a_thread_that_dies_while_closing_is_not_replaced(make: Any) -> None:
    """Closing ends all the same, and so do the requests."""
    made = make(Runner(blocks=2048, gate=threading.Semaphore(0)))
    task = asyncio.create_task(collect(made.engine, job()))
    await until(lambda: made.engine._thread._unfinished)
    with planted(made.runner):
        closing = asyncio.create_task(asyncio.to_thread(made.engine.close, 30))
        await until(lambda: made.engine._closing)
        made.runner.gate.release()
        await closing
    with pytest.raises(Draining):
        await task
    assert made.value("engine_restarts_total") == 0


async def test_warming_up_leaves_nothing_behind(make: Any) -> None:
    """A prompt and two more steps are run, and the cache and the blocks are as before."""
    made = make(Runner(blocks=8, block_tokens=4))
    made.engine.warm_up()
    assert made.runner.steps == [8, 1, 1]
    check_pool(made.pool, [])
    assert made.pool.queries == 0
    rows = await collect(made.engine, Job(tuple(made.tokenizer.encode("Warm up.")), job().params))
    assert rows[0][0].cached_tokens == 0


async def test_what_handlers_ask_for(make: Any) -> None:
    """Texts and chats become ids off the loop; the rest is passed on."""
    made = make()
    assert await made.engine.encode("abc") == (17, 18, 19)
    assert await made.engine.encode_chat([Message("user", "b")]) == (18,)
    assert made.engine.token_bytes(2) == b"c"
    before = made.engine.memory_bytes
    await collect(made.engine, job())
    assert made.engine.memory_bytes > before  # keys and values were written
    assert made.engine.chat_stops


# What is measured


async def test_metrics_after_a_known_set_of_requests(make: Any) -> None:
    """Each request is counted once, under how it ended, the moment its caller knows."""
    made = make()
    await collect(made.engine, job(range(6), 5), job((2,), 3, n=2))
    assert made.value("generation_tokens_total") == 11
    assert made.value("prompt_tokens_total") == 7
    assert made.value("request_success_total", finished_reason="length") == 3
    for name in ("time_to_first_token", "e2e_request_latency", "request_queue_time", "request_prefill_time"):
        assert made.value(f"{name}_seconds_count") == 1
    assert made.value("request_decode_time_seconds_count") == 1
    assert made.value("inter_token_latency_seconds_count") == 11 - 3
    whole = made.value("e2e_request_latency_seconds_sum")
    parts = ("request_queue_time", "request_prefill_time", "request_decode_time")
    assert sum(made.value(f"{part}_seconds_sum") for part in parts) == pytest.approx(whole)
    assert all(made.value(f"{part}_seconds_sum") >= 0 for part in parts)
    async with aclosing(made.engine.stream([job(tokens=FOREVER)])) as stream:
        await anext(stream)
        await anext(stream)
    assert made.value("request_cancelled_total") == 1
    assert made.value("generation_tokens_total") == 13
    assert made.value("e2e_request_latency_seconds_count") == 1


async def test_guesses_are_measured(make: Any) -> None:
    """Tokens guessed ahead and those that were right."""
    made = make(speculate=4)
    await collect(made.engine, job(tokens=200))
    await until(lambda: made.value("spec_decode_num_draft_tokens_total") == made.scheduler.speculation.drafted > 0)
    assert made.value("spec_decode_num_accepted_tokens_total") == made.scheduler.speculation.accepted > 0


async def test_gauges_follow_the_batch(make: Any) -> None:
    """Running, waiting and the cache's usage are those of the step under way."""
    made = make(Runner(blocks=100, block_tokens=4, gate=threading.Semaphore(0)), max_rows=2)
    tasks = [asyncio.create_task(collect(made.engine, job((i,) * 37, 4))) for i in range(5)]
    await until(lambda: len(made.engine._thread._unfinished) == 5)
    made.runner.gate.release(2)
    await until(lambda: made.value("num_requests_running") == 2)
    assert made.value("num_requests_waiting") == 3
    assert made.value("kv_cache_usage_perc") == pytest.approx(0.2)
    made.runner.gate.release(10_000)
    await asyncio.gather(*tasks)
    await until(lambda: made.value("num_requests_running") == 0 == made.value("kv_cache_usage_perc"))


# Behind HTTP


def behind(made: Made) -> Context:
    """A context whose one model is that engine."""
    registry = Registry([ModelSpec("fake", "folder", "/nowhere")], lambda spec, progress: made.engine)
    registry.preload()
    return replace(fake_context(), models=registry)


async def test_the_probes_of_a_dead_engine() -> None:
    """Once the engine stays dead, /livez and /readyz are 503 so that the process is replaced, and requests get 503."""
    made = Made()
    async with serving(behind(made)) as url, aiohttp.ClientSession(url) as http:

        async def status(path: str) -> int:
            async with http.get(path) as response:
                return response.status

        async def ask() -> int:
            async with http.post("/complete", json={"prompt": "x", "max_new_tokens": 3}) as response:
                if response.status == 503:
                    assert response.headers["Retry-After"]
                return response.status

        assert await ask() == 200
        assert (await status("/livez"), await status("/readyz")) == (200, 200)
        for count in range(1, 5):
            with planted(made.runner):
                assert await ask() == 503
            await until(lambda count=count: made.value("engine_restarts_total") == count or not made.engine.alive)
        await until(lambda: not made.engine.alive)
        assert (await status("/livez"), await status("/readyz"), await ask()) == (503, 503, 503)
    made.engine.close()


async def test_a_thousand_disconnects_leave_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Clients that go at random points, streaming or not, leave no row, block, task or file behind, and hurt nobody."""
    made = Made(Runner(blocks=200, block_tokens=4, max_tokens=16, pause=0.0005), cache_blocks=20, max_queue=1000)
    draw = random.Random(5)
    left: Counter[str] = Counter()
    leave = EngineThread.cancel_request

    def leaving(thread: EngineThread, request: Request) -> None:
        if request.unfinished:
            generated = any(sequence.generated for sequence in request.sequences)
            left["decoding" if generated else "prefilling" if request.started else "queued"] += 1
        leave(thread, request)

    monkeypatch.setattr(EngineThread, "cancel_request", leaving)

    async def client(http: aiohttp.ClientSession) -> None:
        body = {
            "prompt": "".join(chr(draw.randrange(97, 117)) for _ in range(draw.choice([1, 10, 60]))),
            "max_new_tokens": draw.choice([1, 20, 60]),
            "num_return_sequences": draw.choice([1, 1, 2]),
            "stream": draw.random() < 0.5,
        }
        try:
            async with asyncio.timeout(draw.uniform(0, 0.2)), http.post("/complete", json=body) as response:
                assert response.status == 200
                for _ in range(draw.choice([1, 10, 1000])):
                    await response.content.readany()
                response.close()
        except TimeoutError:
            return

    async with serving(behind(made)) as url:

        async def swarm(number: int) -> None:
            connector = aiohttp.TCPConnector(limit=0, force_close=True)
            async with aiohttp.ClientSession(url, connector=connector) as http:
                places = asyncio.Semaphore(40)

                async def one() -> None:
                    async with places:
                        await client(http)

                await asyncio.gather(*(one() for _ in range(number)))

        async def settle() -> tuple[int, int]:
            await until(lambda: made.idle, 30)
            await until(lambda: len(asyncio.all_tasks()) == 1, 30)
            gc.collect()
            return len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd"))

        await swarm(50)
        tasks, files = await settle()
        left.clear()
        while left.total() < 1000:
            await swarm(100)
        assert (await settle())[0] == tasks
        await until(lambda: len(os.listdir("/proc/self/fd")) <= files)
        assert min(left[phase] for phase in ("queued", "prefilling", "decoding")) > 0
        check_pool(made.pool, [])
        assert made.pool.used == 0
        assert made.value("num_requests_running") == 0 == made.value("num_requests_waiting")
        assert made.value("request_cancelled_total") >= 1000
        assert [record for record in caplog.records if record.name == "warmstart.engine"] == []
        one = job(range(10), 30)
        assert ids(await collect(made.engine, one)) == expected(one)
    made.engine.close()
