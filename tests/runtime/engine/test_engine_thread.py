"""The engine's thread: what it admits, what it does when something fails, and how it is replaced."""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import logging
import os
import threading
import time
from collections.abc import Sequence
from ctypes import c_int32
from dataclasses import replace
from typing import Any

import pytest

from runtime.engine import engine as engine_module
from runtime.engine.sequence import Row, Sampled, StepInterrupted
from runtime.errors import (
    ContextLengthExceeded,
    DeadlineExceeded,
    EngineRestarting,
    InternalError,
    InvalidRequest,
    ModelUnavailable,
    ServiceError,
    TooManyRequests,
)
from runtime.telemetry.logging import JsonFormatter
from runtime.telemetry.request_scope import request_facts
from runtime.types import Job, Message
from tests.support.engines import FOREVER, Runner, collect, expected, ids, job, planted
from tests.support.fakes import check_pool, until

# How much is let in


async def test_a_full_queue_refuses_before_anything_is_tokenized(make: Any) -> None:
    """With MAX_QUEUE requests waiting the next is refused, its text unread; what waits gets its answer."""
    made = make(Runner(blocks=2048, gate=threading.Semaphore(0)), max_rows=1, max_queue=2)
    first = asyncio.create_task(collect(made.engine, job(tokens=1)))
    await until(lambda: made.engine._thread._unfinished and not made.engine._thread._waiting_interactive)
    waiting = [asyncio.create_task(collect(made.engine, job(tokens=1))) for _ in range(2)]
    await until(lambda: len(made.engine._thread._waiting_interactive) == 2)
    for refused in (
        made.engine.encode("x"),
        made.engine.encode_chat([Message("user", "x")]),
        collect(made.engine, job()),
    ):
        with pytest.raises(TooManyRequests, match="MAX_QUEUE") as caught:
            await refused
        assert caught.value.retry_after is not None
        assert caught.value.retry_after >= 1
    assert made.tokenizer.encoded == []
    assert made.value("request_rejected_total", reason="queue_full") == 3
    assert made.value("num_requests_running") == 1
    waiting[1].cancel()
    await asyncio.wait([waiting[1]])
    assert await made.engine.encode("a")  # the place of one that went is free
    made.runner.gate.release(10)
    assert [len(rows[0]) for rows in await asyncio.gather(first, waiting[0])] == [1, 1]
    await until(lambda: made.value("num_requests_waiting") == 0 == made.value("num_requests_running"))


async def test_a_queue_that_fills_while_a_text_waits_to_be_tokenized(make: Any) -> None:
    """The queue is looked at once more when the text's turn comes."""
    made = make(Runner(blocks=2048, gate=threading.Semaphore(0)), max_rows=1, max_queue=1)
    loop = asyncio.get_running_loop()
    hold = threading.Event()
    size = (os.cpu_count() or 1) + 4  # threads of a loop's own pool
    held = [loop.run_in_executor(None, hold.wait) for _ in range(min(32, size))]
    late = asyncio.create_task(made.engine.encode("x"))
    await asyncio.sleep(0)
    tasks = [asyncio.create_task(collect(made.engine, job(tokens=1)))]
    await until(lambda: made.engine._thread._unfinished and not made.engine._thread._waiting_interactive)
    tasks.append(asyncio.create_task(collect(made.engine, job(tokens=1))))
    await until(lambda: made.engine._thread._waiting_interactive)
    hold.set()
    with pytest.raises(TooManyRequests):
        await late
    assert made.tokenizer.encoded == []
    made.runner.gate.release(10)
    await asyncio.gather(*held, *tasks)


async def test_the_time_to_come_back_follows_the_rate_of_service(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A queue that moves slowly sends callers away for longer."""
    made = make(max_queue=10)
    clock = itertools.count(0.0, 10.0)  # every look at the clock is ten seconds after the last
    monkeypatch.setattr("runtime.engine.engine_thread.time.monotonic", lambda: next(clock))
    for _ in range(30):
        await collect(made.engine, job(tokens=1))
    thread = made.engine._thread
    thread._waiting_interactive.update(object() for _ in range(10))  # type: ignore[misc]
    with pytest.raises(TooManyRequests) as caught:
        thread.check_admission(background=False)
    thread._waiting_interactive.clear()
    assert caught.value.retry_after is not None
    assert caught.value.retry_after > 50


@pytest.mark.parametrize(
    ("one", "error", "says"),
    [
        (job(range(10), 90), ContextLengthExceeded, "KV_CACHE_BYTES"),
        (job(range(10), 492), ContextLengthExceeded, "maximum context length is 500 tokens"),
        (job((), 5), InvalidRequest, "no tokens"),
    ],
)
async def test_what_can_never_fit_is_refused_at_once(make: Any, one: Job, error: type[ServiceError], says: str) -> None:
    """A request that no empty engine could take does not wait in the queue, and the reason names what bounds it."""
    made = make(Runner(blocks=24, block_tokens=4), context_length=500)
    with pytest.raises(error, match=says):
        await collect(made.engine, job(), one)
    assert made.value("request_rejected_total", reason=error.code) == 1
    assert made.idle
    assert len((await collect(made.engine, job(range(10), 87)))[0]) == 87


async def test_more_than_fits_waits_its_turn(make: Any) -> None:
    """Requests beyond the memory for keys and values wait for those before them, and all are answered in full, once;
    the metric counts those that were interrupted.
    """
    made = make(Runner(blocks=24, block_tokens=4), cache_blocks=4)
    jobs = [job(range(i, i + 10), 80) for i in range(6)]
    rows = await asyncio.gather(*(collect(made.engine, one) for one in jobs))
    assert [ids(row) for row in rows] == [expected(one) for one in jobs]
    assert max(made.runner.sizes) > 1
    assert made.value("num_preemptions_total") == made.scheduler.preemptions > 0


async def test_many_sequences_of_one_request_take_turns(make: Any) -> None:
    """Of one request at most half of the rows run, and its others come behind what arrives meanwhile; all are answered
    as they would be alone, whatever prompt they belong to.
    """
    made = make(Runner(blocks=2048, gate=threading.Semaphore(0)), max_rows=4)
    many = [job((i % 20, 5, i // 20), 3, n=1 + 4 * (i % 3 == 0), temperature=1, seed=i) for i in range(40)]
    big = asyncio.create_task(collect(made.engine, *many))
    await until(lambda: made.scheduler.running)
    assert made.scheduler.waiting + made.scheduler.running == 2
    small = asyncio.create_task(collect(made.engine, job(range(5), 2)))
    made.runner.gate.release(20)
    await small
    assert not big.done()
    made.runner.gate.release(10_000)
    assert ids(await big) == [row for one in many for row in expected(one)]
    assert max(made.runner.sizes) <= 3
    await until(lambda: made.idle)
    check_pool(made.pool, [])


async def test_leaving_ends_what_has_had_no_turn(make: Any) -> None:
    """Of a request that nobody reads any more nothing is computed that was not begun."""
    made = make(Runner(blocks=2048, gate=threading.Semaphore(0)), max_rows=4)
    big = asyncio.create_task(collect(made.engine, *(job((i, 2), FOREVER) for i in range(20))))
    await until(lambda: made.scheduler.running)
    big.cancel()
    await asyncio.wait([big])
    made.runner.gate.release(10)
    await until(lambda: made.idle)
    assert len(made.runner.steps) <= 2


async def test_a_deadline_ends_a_request_wherever_it_is(make: Any) -> None:
    """Waiting or running, it ends with an error that names the setting, and is gone from the engine."""
    made = make(Runner(blocks=2048, gate=threading.Semaphore(0)), max_rows=1, timeout=0.05)
    tasks = [asyncio.create_task(collect(made.engine, job(tokens=FOREVER))) for _ in range(2)]
    for task in tasks:
        with pytest.raises(DeadlineExceeded, match="REQUEST_TIMEOUT_SECONDS"):
            await task
    made.runner.gate.release(1)
    await until(lambda: made.idle)
    assert made.value("request_failure_total", code="deadline_exceeded") == 2
    assert made.value("request_cancelled_total") == 0


# Queued work


async def test_each_kind_has_a_queue_of_its_own(make: Any) -> None:
    """A backlog of background requests refuses background ones and no others, and the other way round."""
    made = make(Runner(blocks=2048, gate=threading.Semaphore(0)), max_rows=1, max_queue=1)
    tasks = [asyncio.create_task(collect(made.engine, job(tokens=1)))]
    await until(lambda: made.engine._thread._unfinished and not made.engine._thread._waiting_interactive)
    tasks.append(asyncio.create_task(collect(made.engine, replace(job(tokens=1), background=True))))
    await until(lambda: made.engine._thread._waiting_background)
    assert await made.engine.encode("a") == (17,)
    with pytest.raises(TooManyRequests):
        await made.engine.encode("a", background=True)
    with pytest.raises(TooManyRequests):
        await made.engine.encode_chat([Message("user", "x")], background=True)
    with pytest.raises(TooManyRequests):
        await collect(made.engine, replace(job(), background=True))
    tasks.append(asyncio.create_task(collect(made.engine, job(tokens=1))))
    await until(lambda: made.engine._thread._waiting_interactive)
    with pytest.raises(TooManyRequests):
        await made.engine.encode("a")
    tasks[1].cancel()
    await asyncio.wait(tasks[1:2])
    assert await made.engine.encode("a", background=True) == (17,)
    made.runner.gate.release(10)
    await asyncio.gather(tasks[0], tasks[2])
    await until(lambda: made.idle)


class Interruptible(Runner):
    """A runner whose steps wait, if they may be interrupted, until they are."""

    def step(
        self, rows: Sequence[Row], interrupt: c_int32 | None = None, *, resume: bool = False
    ) -> list[list[Sampled] | ServiceError]:
        results = super().step(rows, interrupt, resume=resume)
        while interrupt is not None:
            time.sleep(0.001)
            if interrupt.value:
                raise StepInterrupted
        return results


async def test_an_interactive_request_interrupts_a_step(make: Any) -> None:
    """It does not wait for a step of background work, which goes on behind it; a background request waits."""
    made = make(Interruptible(blocks=2048))
    work = [replace(job((1, 2, i), 3, temperature=1, seed=i), background=True) for i in range(2)]
    tasks = [asyncio.create_task(collect(made.engine, one)) for one in work]
    await until(lambda: made.runner.sizes)
    steps = len(made.runner.sizes)
    await asyncio.sleep(0.02)
    assert len(made.runner.sizes) == steps
    asked = 0
    while not all(task.done() for task in tasks):  # each question interrupts one step, and the next one is completed
        question = job((3, asked), 1)
        assert ids(await collect(made.engine, question)) == expected(question)
        asked += 1
    assert [ids(task.result()) for task in tasks] == [expected(one) for one in work]
    assert asked > 1


async def test_an_interrupted_request_goes_on(make: Any) -> None:
    """It gets every token once, as if nothing had been; meanwhile it counts as waiting, and the interruption is
    measured.
    """
    made = make(Runner(blocks=2048, gate=threading.Semaphore(0)), max_rows=2)
    texts = [replace(job((1, 2, i), 40, temperature=1, seed=i), background=True) for i in range(2)]
    background = [asyncio.create_task(collect(made.engine, text)) for text in texts]
    await until(lambda: len(made.engine._thread._unfinished) == 2)
    made.runner.gate.release(10)
    await until(lambda: len(made.runner.sizes) >= 9)
    interactive = job((3,), 5)
    task = asyncio.create_task(collect(made.engine, interactive))
    await until(lambda: len(made.engine._thread._unfinished) == 3)
    made.runner.gate.release(3)
    await until(lambda: made.value("num_queued_requests_waiting") == 1)
    assert made.value("num_requests_running") == 2
    assert made.value("num_requests_waiting") == 0
    made.runner.gate.release(1000)
    assert ids(await task) == expected(interactive)
    assert [ids(rows) for rows in await asyncio.gather(*background)] == [expected(text) for text in texts]
    await until(lambda: made.idle)
    assert made.value("num_preemptions_total") == 1
    assert made.value("num_queued_requests_waiting") == 0


async def test_an_interrupted_request_that_nobody_wants(make: Any) -> None:
    """Leaving while it is put back leaves nothing behind."""
    made = make(Runner(blocks=2048, gate=threading.Semaphore(0)), max_rows=2)
    background = [
        asyncio.create_task(collect(made.engine, replace(job((i,), FOREVER, n=1), background=True))) for i in range(2)
    ]
    await until(lambda: len(made.engine._thread._unfinished) == 2)
    made.runner.gate.release(3)
    await until(lambda: len(made.runner.sizes) >= 2)
    task = asyncio.create_task(collect(made.engine, job((3,), FOREVER)))
    await until(lambda: len(made.engine._thread._unfinished) == 3)
    made.runner.gate.release(3)
    await until(lambda: made.engine._thread._waiting_background)
    for one in (*background, task):
        one.cancel()
    await asyncio.wait([*background, task])
    made.runner.gate.release(10)
    await until(lambda: made.idle)
    assert made.pool.used == 0


@pytest.mark.parametrize("begun", [False, True])
async def test_background_work_that_had_no_turn_in_time(make: Any, begun: bool) -> None:
    """It is told that the service is busy, and may come again; work that was begun is told of the deadline."""
    made = make(Runner(blocks=2048, gate=threading.Semaphore(0)), max_rows=1, timeout=0.1)
    first = None if begun else asyncio.create_task(collect(made.engine, job(tokens=FOREVER)))
    if first is not None:
        await until(lambda: made.engine._thread._unfinished and not made.engine._thread._waiting_interactive)
    with pytest.raises(DeadlineExceeded if begun else TooManyRequests, match="REQUEST_TIMEOUT_SECONDS"):
        await collect(made.engine, replace(job(tokens=FOREVER), background=True))
    if first is not None:
        with pytest.raises(DeadlineExceeded):
            await first
    made.runner.gate.release(2)
    await until(lambda: made.idle)


# What fails


async def test_a_failing_row_fails_its_request_only(make: Any) -> None:
    """One bad row ends all sequences of its request and no other's."""
    error = InternalError("the logits are not numbers")
    bad = job((6, 6, 6), 9, n=2, temperature=1, seed=1)
    made = make(
        Runner(blocks=2048, fail=lambda row: error if row.sequence.prompt == (6, 6, 6) and row.start > 3 else None)
    )
    good = [job((i,), 20) for i in range(5)]
    *results, failed = await asyncio.gather(
        *(collect(made.engine, one) for one in good), collect(made.engine, bad), return_exceptions=True
    )
    assert failed is error
    assert [ids(rows) for rows in results] == [expected(one) for one in good]
    await until(lambda: made.idle)
    assert made.pool.used == 0
    assert made.value("request_failure_total", code="internal_error") == 1
    assert made.value("engine_restarts_total") == 0


async def test_an_exception_in_a_step_is_traced_to_its_row(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A step that raises is taken apart: the row that raises alone fails, without its text; the others go on."""

    def plant(rows: Sequence[Row]) -> None:
        if any(row.sequence.prompt == (6,) and row.start == 2 for row in rows):
            raise ZeroDivisionError("planted")

    made = make(Runner(blocks=2048, plant=plant))
    good = [job((i,), 20, temperature=1, seed=i) for i in range(5)]
    *results, failed = await asyncio.gather(
        *(collect(made.engine, one) for one in [*good, job((6,), 20)]), return_exceptions=True
    )
    assert type(failed) is InternalError
    assert "planted" not in failed.message
    assert "ZeroDivisionError" in caplog.text
    assert [ids(rows) for rows in results] == [expected(one) for one in good]


async def test_the_log_lines_of_a_failure_carry_the_request_id(make: Any) -> None:
    """What the engine's thread logs about a request is found by the request's id."""
    made = make(Runner(blocks=2048, plant=lambda rows: 1 // 0))  # type: ignore[arg-type]
    lines = io.StringIO()
    handler = logging.StreamHandler(lines)
    handler.setFormatter(JsonFormatter())
    logging.getLogger("warmstart.engine").addHandler(handler)
    token = request_facts.set({"request_id": "r7"})
    try:
        with pytest.raises(InternalError):
            await collect(made.engine, job())
    finally:
        request_facts.reset(token)
        logging.getLogger("warmstart.engine").removeHandler(handler)
    told = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert [line.get("request_id") for line in told if line["message"].startswith("a generation")] == ["r7", "r7"]


async def test_a_dead_thread_is_replaced(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Its requests, background ones too, end at once with 503 and may be tried again; the next ones are answered."""
    made = make(Runner(blocks=2048, gate=threading.Semaphore(0)), max_rows=2)
    thread = made.engine._thread.thread
    tasks = [asyncio.create_task(collect(made.engine, job(range(9), FOREVER))) for _ in range(4)]
    await until(lambda: len(made.engine._thread._unfinished) == 4)
    made.runner.gate.release(3)
    await until(lambda: len(made.runner.sizes) >= 2)
    with planted(made.runner) as deaths:
        made.runner.gate.release(2)
        errors = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 1)
    assert deaths
    assert [type(error) for error in errors] == [EngineRestarting] * 4
    assert errors[0].status == 503
    assert errors[0].retryable
    assert not thread.is_alive()
    await until(lambda: made.engine._thread.thread is not thread and made.engine.beating)
    made.runner.gate.release(1000)
    again = job(range(9), 5)
    assert ids(await collect(made.engine, again)) == expected(again)
    assert made.value("engine_restarts_total") == 1
    assert made.value("request_failure_total", code="engine_restarting") == 4
    assert "the engine thread crashed" in caplog.text
    await until(lambda: made.idle)
    check_pool(made.pool, [])


async def test_nothing_is_admitted_by_a_dead_thread(make: Any) -> None:
    """A request that comes between a death and the new thread is refused, not forgotten."""
    made = make()
    thread = made.engine._thread
    with planted(made.runner), pytest.raises(EngineRestarting):
        await collect(made.engine, job())
    with pytest.raises(EngineRestarting):
        thread.check_admission(background=False)


async def test_after_three_restarts_within_a_minute_the_engine_stays_dead(make: Any) -> None:
    """Every request that a death ends gets 503; then the engine is not alive any more and refuses at once."""
    made = make()
    for count in range(1, 5):
        assert made.engine.alive
        with planted(made.runner), pytest.raises(EngineRestarting):
            await collect(made.engine, job())
        await until(lambda count=count: made.value("engine_restarts_total") == count or not made.engine.alive)
    await until(lambda: not made.engine.alive)
    assert not made.engine.beating
    for refused in (collect(made.engine, job()), made.engine.encode("x")):
        with pytest.raises(ModelUnavailable, match="restart the service"):
            await refused
    assert made.value("engine_restarts_total") == 3


async def test_deaths_far_apart_are_forgiven(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any number of deaths is survived if they do not come within a minute."""
    made = make()
    monkeypatch.setattr(engine_module, "_CRASH_WINDOW_SECONDS", 0.0)
    for count in range(1, 7):
        with planted(made.runner), pytest.raises(EngineRestarting):
            await collect(made.engine, job())
        await until(lambda count=count: made.value("engine_restarts_total") == count)
    assert len((await collect(made.engine, job()))[0]) == 5


async def test_a_step_that_hangs_is_no_heartbeat(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a step takes too long the engine is alive but does not beat; it beats again afterwards, idle too."""
    made = make(Runner(blocks=2048, gate=threading.Semaphore(0)))
    monkeypatch.setattr(engine_module, "MAX_HEARTBEAT_AGE_SECONDS", 0.05)
    monkeypatch.setattr("runtime.engine.engine_thread.HEARTBEAT_SECONDS", 0.001)
    await until(lambda: made.engine.beating)
    task = asyncio.create_task(collect(made.engine, job(tokens=2)))
    await until(lambda: not made.engine.beating)
    assert made.engine.alive
    made.runner.gate.release(2)
    await task
    await until(lambda: made.engine.beating)
