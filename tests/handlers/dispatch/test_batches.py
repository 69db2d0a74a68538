"""handlers.dispatch.batches: rows that run in this process, and their audit records."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from handlers.api.routes import error_form
from handlers.dispatch.batches import RowDispatcher
from runtime.audit.chain import prompt_hash
from runtime.audit.log import AuditLog
from runtime.batch_types import StoredBatch
from runtime.batches.audit import RowAudit
from runtime.cancellation import cancel_and_wait
from runtime.errors import AuditUnavailable, InvalidRequest
from runtime.telemetry.request_scope import observe_usage
from tests.runtime.audit.logs import KEYS, check, records
from tests.support.fakes import FakeEngine, fake_context

BATCH = StoredBatch("batch_1", "key_1", "file-1", "/complete", "24h", 0, 4_000_000_000)
BODY = {"prompt": "a secret", "max_new_tokens": 2, "model": "fake"}


class Failing(AuditLog):
    """An audit log that fails for so many rows."""

    left = 0

    def write(self, event: str, fields: Mapping[str, Any]) -> bool:
        """See ``AuditLog``."""
        self.left -= event == "row"
        return False if self.left >= 0 and event == "row" else super().write(event, fields)


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[Failing]:
    """An audit log."""
    log = Failing(tmp_path / "audit.log", KEYS, 10**6)
    log.open()
    yield log
    log.close()


async def test_a_record_for_each_row(log: Failing, tmp_path: Path) -> None:
    """It has the key and the batch, how the row ended and what it cost, and of the prompt the keyed hash only."""
    ctx = replace(fake_context(), observe=observe_usage)
    rows = RowDispatcher(ctx, error_form, RowAudit(log, KEYS.prompt, required=False))
    answer = await rows.run(BATCH, BODY, "batch_1-1")
    with pytest.raises(InvalidRequest):
        await rows.run(BATCH, {"prompt": 3}, "batch_1-2")
    slow = RowDispatcher(fake_context(FakeEngine(pause=60)), error_form, RowAudit(log, KEYS.prompt, required=True))
    task = asyncio.create_task(slow.run(BATCH, BODY, "batch_1-3"))
    await asyncio.sleep(0.01)
    await cancel_and_wait(task)
    log.close()
    assert check(tmp_path / "audit.log").problem is None
    good, bad, stopped = [record for record in records(tmp_path / "audit.log") if record["event"] == "row"]
    assert good.items() >= {
        ("request_id", "batch_1-1"),
        ("batch", "batch_1"),
        ("key", "key_1"),
        ("operation", "complete"),
        ("result", "ok"),
        ("reason", None),
        ("tokens_in", answer.usage.prompt_tokens),
        ("tokens_out", answer.usage.completion_tokens),
        ("model", "fake"),
        ("prompt_hash", prompt_hash(KEYS.prompt, BODY)),
    }
    assert (bad["result"], bad["reason"]) == ("refused", "invalid_request")
    assert (stopped["request_id"], stopped["result"]) == ("batch_1-3", "stopped")
    assert "secret" not in (tmp_path / "audit.log").read_text()


async def test_what_cannot_be_recorded(log: Failing) -> None:
    """Where records are required, the row is to run again; else it counts."""
    log.left = 2
    strict = RowDispatcher(fake_context(), error_form, RowAudit(log, KEYS.prompt, required=True))
    with pytest.raises(AuditUnavailable):
        await strict.run(BATCH, BODY, "a")
    lax = RowDispatcher(fake_context(), error_form, RowAudit(log, KEYS.prompt, required=False))
    assert (await lax.run(BATCH, BODY, "a")).status == 200
    assert (await strict.run(BATCH, BODY, "a")).status == 200
