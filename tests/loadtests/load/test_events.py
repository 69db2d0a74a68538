from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from loadtests.load.arrivals import rate_stage
from loadtests.load.events_client import BridgedEvents
from loadtests.load.http_answer import BadAnswer
from loadtests.load.http_client import ConnectionPool, Target
from loadtests.load.prompts import Prompts
from loadtests.load.record import OK, LoadRecord
from loadtests.load.stage_worker import StageOrder, StageWorker
from loadtests.service import free_port
from tests.loadtests.load.records import scenario
from tests.support.models import ROOT
from tests.support.redis_server import OwnRedis

PROGRAM = "import sys, server; sys.exit(server.main(sys.argv[1:]))"


def test_events_go_through_a_broker(tmp_path: Path, tiny_gpt2: Path) -> None:
    """To a worker and back: tokens are timed as they come, and an answer that is an error is one."""
    redis = OwnRedis(tmp_path / "redis")
    command = [sys.executable, "-c", PROGRAM, "consume", redis.url, "--port", str(free_port())]
    settings = {"MODEL_NAME": str(tiny_gpt2), "IDEMPOTENCY": "memory"}
    with (tmp_path / "worker.log").open("wb") as log:
        worker = subprocess.Popen(command, cwd=ROOT, env=os.environ | settings, stdout=log, stderr=log)
    events = BridgedEvents(sys.executable, redis.url)
    try:
        records: list[LoadRecord] = []
        work = [{"kind": "event", "prompt": "You may {unique}", "output_tokens": 6}]
        order = StageOrder(scenario(work=work), rate_stage(20, 0.2, 0, "constant"), 0, Prompts(1), None)
        StageWorker(order, ConnectionPool(Target("x")), events, records.extend).run()
        assert [record.outcome for record in records] == [OK] * 4
        assert all(record.completion_tokens == 6 and record.ttft for record in records)
        with pytest.raises(BadAnswer, match="prompt"):
            events.request("complete", {"prompt": 3}, 60)
    finally:
        events.close()
        worker.terminate()
        worker.wait(60)
        redis.kill()


def test_a_broker_that_is_not_there_fails_the_requests() -> None:
    """With the bridge's end as the reason."""
    events = BridgedEvents(sys.executable, f"redis://127.0.0.1:{free_port()}/0")
    with pytest.raises((BadAnswer, OSError)):
        events.request("complete", {"prompt": "x"}, 60)
    events.close()
