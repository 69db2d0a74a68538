"""kill -9, over and over, under load: each message is answered once, none is lost."""

from __future__ import annotations

import asyncio
import json
import random
import signal
from pathlib import Path
from typing import Any

import pytest

from handlers.local import build_context, invoke
from runtime.settings import Settings
from tests.events.brokers import BROKERS, Broker
from tests.events.workers import Worker, envelope, reading, submitting, until
from tests.support.soak import soak

KILLS = soak(50, 5)
BACKLOG = 48  # messages that are there and not answered, at every kill
CONCURRENCY = 16


def _payload(number: int) -> dict[str, Any]:
    return {"prompt": f"Number {number} of", "max_new_tokens": 8, "seed": number}


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("broker", BROKERS)
async def test_killed_fifty_times(broker: type[Broker], tiny_gpt2: Path, tmp_path: Path) -> None:
    """Fifty workers are killed one after the other at random moments, most of them in the midst of work.

    The reader of the results sees each message's answer exactly once, and it is the right one.
    """
    draw = random.Random(6)
    async with broker.queue(ack_seconds=1.0) as queue, reading(broker.results(queue)) as results:
        worker = Worker(
            queue,
            tmp_path / "worker.log",
            *("--concurrency", str(CONCURRENCY), "--max-deliveries", "1000"),
            MODEL_NAME=str(tiny_gpt2),
            EVENTS_ACK_SECONDS="1",
            **broker.records(tmp_path, queue),
        )
        sent = 0
        async with submitting(queue) as submit:
            try:
                for kill in range(KILLS):
                    before = len(results.counts)
                    missing = BACKLOG + before - sent
                    await submit([envelope(str(number), _payload(number)) for number in range(sent, sent + missing)])
                    sent += max(0, missing)
                    await worker.start()
                    if kill % 5:  # else whenever: it may still be loading
                        await until(lambda seen=before: len(results.counts) > seen, "no answer", worker=worker)
                        await asyncio.sleep(draw.uniform(0, 0.05))
                    else:
                        await asyncio.sleep(draw.uniform(0, 1.5))
                    await worker.kill()
                at_the_last_kill = len(results.counts)
                await worker.start()
                await until(lambda: len(results.counts) >= sent, "an answer is missing", worker=worker)
                worker.signal(signal.SIGTERM)
                assert await worker.ended() == 0
            finally:
                await worker.kill()
        assert results.counts == dict.fromkeys(map(str, range(sent)), 1)
        assert not results.dead
        assert at_the_last_kill >= KILLS - KILLS // 5  # kills without a wait
    ctx = build_context(Settings.load(model_name=str(tiny_gpt2), response_cache="off"))
    try:
        for number in range(0, sent, 7):
            expected = await invoke("complete", _payload(number), ctx=ctx)
            assert json.loads(results.bodies[str(number)])["text"] == expected["text"]
    finally:
        await asyncio.to_thread(ctx.models.close)  # type: ignore[attr-defined]
