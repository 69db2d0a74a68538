"""A batch over a broker: the service and its workers are killed again and again, and each row is in the output once."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from handlers.local import build_context, invoke
from loadtests.service import running_service
from runtime.settings import Settings
from tests.support.batch_service import create, done, lines
from tests.support.batches import input_text
from tests.support.nats_server import own_nats_server
from tests.support.redis_server import OwnRedis
from tests.support.soak import SOAK, soak

ROWS = soak(10_000, 200)
KILLS = soak(30, 2)
ENDPOINT = "/complete"


@contextmanager
def _redis(folder: Path) -> Iterator[OwnRedis]:
    server = OwnRedis(folder / "redis")
    try:
        yield server
    finally:
        server.kill()


def _body(number: int) -> dict[str, Any]:
    return {"prompt": f"Number {number} of", "max_new_tokens": 8, "seed": number}


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("broker", [_redis, own_nats_server] if SOAK else [_redis])
def test_killed(broker: Any, tiny_gpt2: Path, tmp_path: Path) -> None:
    """Two workers answer the rows; the service, a worker, and with SOAK=1 the broker are killed in turn.

    The service has no model of its own.
    """
    draw = random.Random(4)
    with broker(tmp_path) as server, ExitStack() as ends:
        shared = {"LOG_FORMAT": "json", "RESPONSE_CACHE": "off", "EVENTS_URL": server.url, "BATCH_STREAM": ""}
        rows_to = {
            "MODEL_NAME": "none/such",
            "PRELOAD": "false",
            "FILES_DIR": str(tmp_path / "files"),
            "BATCH_STREAM": "batches",
        }
        works = {
            "MODEL_NAME": str(tiny_gpt2),
            "CACHE_DIR": str(tmp_path / "cache"),
            "EVENTS_ACK_SECONDS": "1",
            "EVENTS_MAX_DELIVERIES": "1000",
        }

        def start(kind: str) -> Any:
            command = [] if kind == "service" else ["consume", "--stream", "batches"]
            settings = shared | (rows_to if kind == "service" else works)
            return ends.enter_context(running_service(*command, **settings))

        processes = {kind: start(kind) for kind in ("service", "worker 1", "worker 2")}
        processes["service"].wait("/livez")
        text = input_text([_body(number) for number in range(ROWS)], ENDPOINT)
        batch_id = create(processes["service"], text, ENDPOINT)
        batch = done(processes["service"], batch_id, 0)
        for kill in range(KILLS):
            assert batch["status"] == "in_progress"
            time.sleep(draw.uniform(0, 0.05))
            kind = ("service", "worker 1", "worker 2", "broker")[kill % (4 if SOAK else 3)]
            if kind == "broker":
                server.kill()
                time.sleep(draw.uniform(0, 1))
                server.start()
            else:
                processes[kind].process.kill()
                processes[kind].process.wait()
                processes[kind] = start(kind)
            processes["service"].wait("/livez")
            seen = batch["request_counts"]["completed"]
            batch = done(processes["service"], batch_id, seen)
        batch = done(processes["service"], batch_id, ROWS)
        assert (batch["status"], batch["error_file_id"]) == ("completed", None)
        assert batch["request_counts"] == {"total": ROWS, "completed": ROWS, "failed": 0}
        found = lines(processes["service"], batch["output_file_id"])
    assert [line["custom_id"] for line in found] == [f"row-{number}" for number in range(ROWS)]
    texts = [line["response"]["body"]["text"] for line in found]
    alone = asyncio.run(_alone(tiny_gpt2, range(0, ROWS, max(7, ROWS // 50))))
    assert {number: texts[number] for number in alone} == alone


async def _alone(model: Path, numbers: range) -> dict[int, str]:
    ctx = build_context(Settings.load(model_name=str(model), response_cache="off"))
    try:
        return {number: (await invoke("complete", _body(number), ctx=ctx))["text"] for number in numbers}
    finally:
        await asyncio.to_thread(ctx.models.close)  # type: ignore[attr-defined]
