"""A real service is killed again and again in the middle of a batch: no row is lost, and none comes twice."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from handlers.local import build_context, invoke
from loadtests.service import running_service
from runtime.settings import Settings
from tests.support.batch_service import call, create, done, lines
from tests.support.batches import input_text
from tests.support.soak import soak

ROWS = soak(10_000, 300)
KILLS = soak(25, 3)
ENDPOINT = "/complete"


def _body(number: int) -> dict[str, Any]:
    return {"prompt": f"Number {number} of", "max_new_tokens": 8, "seed": number}


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_killed_in_the_middle(tiny_gpt2: Path, tmp_path: Path) -> None:
    """The batch ends after any number of kills, with each row once and the answer that it gets alone.

    Some kills come while rows run, others at any moment of the start. At the end SIGTERM stops the service while a
    second batch runs, which goes on as well.
    """
    draw = random.Random(3)
    settings = {
        "MODEL_NAME": str(tiny_gpt2),
        "FILES_DIR": str(tmp_path / "files"),
        "BATCH_CONCURRENCY": "8",
        "LOG_FORMAT": "json",
        "RESPONSE_CACHE": "off",
    }
    batch_id, seen, in_the_middle = "", 0, 0
    for kill in range(KILLS):
        with running_service(**settings) as service:
            service.wait("/livez")
            if not batch_id:
                rows = input_text([_body(number) for number in range(ROWS)], ENDPOINT)
                batch_id = create(service, rows, ENDPOINT)
            if kill % 4 != 3:
                batch = done(service, batch_id, seen)
                seen = batch["request_counts"]["completed"]
                in_the_middle += batch["status"] == "in_progress"
                time.sleep(draw.uniform(0, 0.05))
            else:
                time.sleep(draw.uniform(0, 2))
            service.process.kill()
            service.process.wait()
    with running_service(**settings) as service:
        service.wait("/livez")
        batch = done(service, batch_id, ROWS)
        assert (batch["status"], batch["error_file_id"]) == ("completed", None)
        assert batch["request_counts"] == {"total": ROWS, "completed": ROWS, "failed": 0}
        found = lines(service, batch["output_file_id"])
        assert [line["custom_id"] for line in found] == [f"row-{number}" for number in range(ROWS)]
        again = {key: batch[key] for key in ("input_file_id", "endpoint", "completion_window")}
        second_id = call(service, "/v1/batches", again)["id"]
        second = done(service, second_id, 0)
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(60) == 0
    assert in_the_middle >= KILLS // 2
    assert second["status"] == "in_progress"
    with running_service(**settings) as service:
        service.wait("/livez")
        second = done(service, second_id, ROWS)
        repeated = lines(service, second["output_file_id"])
    assert [_text(line) for line in repeated] == [_text(line) for line in found]
    alone = asyncio.run(_alone(tiny_gpt2, range(0, ROWS, max(7, ROWS // 100))))
    assert {number: _text(found[number]) for number in alone} == alone


def _text(line: dict[str, Any]) -> str:
    return str(line["response"]["body"]["text"])


async def _alone(model: Path, numbers: range) -> dict[int, str]:
    ctx = build_context(Settings.load(model_name=str(model), response_cache="off"))
    try:
        return {number: (await invoke("complete", _body(number), ctx=ctx))["text"] for number in numbers}
    finally:
        await asyncio.to_thread(ctx.models.close)  # type: ignore[attr-defined]
