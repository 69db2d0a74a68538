"""Many small messages through two workers, counted."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.events.brokers import BROKERS, Broker
from tests.events.workers import Worker, envelope, reading, submitting, until
from tests.support.soak import soak

MESSAGES = soak(10_000)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("broker", BROKERS)
async def test_ten_thousand_messages(broker: type[Broker], tiny_gpt2: Path, tmp_path: Path) -> None:
    """Two workers of one group share ten thousand messages: each is answered once, and both have worked."""
    async with broker.queue(ack_seconds=30.0) as queue, reading(broker.results(queue)) as results:
        settings = broker.records(tmp_path, queue) | {"MODEL_NAME": str(tiny_gpt2), "NUM_THREADS": "1"}
        workers = [Worker(queue, tmp_path / f"{name}.log", "--concurrency", "64", **settings) for name in "ab"]
        async with submitting(queue) as submit:
            await submit(
                [envelope(str(n), {"prompt": f"{n}", "max_new_tokens": 1, "seed": 1}) for n in range(MESSAGES)]
            )
        try:
            for worker in workers:
                await worker.start()
            await until(lambda: len(results.counts) >= MESSAGES, "answers are missing", 240, worker=workers[0])
            for worker in workers:
                worker.signal(signal.SIGTERM)
                assert await worker.ended() == 0
        finally:
            for worker in workers:
                await worker.kill()
        assert results.counts == dict.fromkeys(map(str, range(MESSAGES)), 1)
        assert not results.dead
        shares = [_answered(worker) for worker in workers]
        assert sum(shares) == MESSAGES
        assert min(shares) > 0


def _answered(worker: Worker) -> int:
    lines = (json.loads(line) for line in worker.log.read_text().splitlines())
    return sum(line["logger"] == "warmstart.events" and line.get("outcome") == "acked" for line in lines)
