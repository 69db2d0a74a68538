"""handlers.dispatch.queued_rows: rows of batches through a queue, with a worker's real processor behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from handlers.api.routes import error_form
from handlers.dispatch.events import Dispatcher
from handlers.dispatch.queued_rows import QueuedRows, queue_of, usage_of
from runtime.batch_types import StoredBatch
from runtime.cancellation import cancel_and_wait
from runtime.errors import SettingsError
from runtime.events.idempotency.memory import MemoryRecords
from runtime.events.outcome import Policy
from runtime.events.processor import Processor
from runtime.settings import Settings
from runtime.types import TokenUsage
from tests.events.memory_queue import MemoryBroker, MemorySource, MemorySubmitter
from tests.support.fakes import fake_context, until

END = 4_000_000_000


def _batch(endpoint: str = "/complete", expires: int = END) -> StoredBatch:
    return StoredBatch("batch_1", "me", "file-1", endpoint, "24h", 0, expires)


@asynccontextmanager
async def worker(broker: MemoryBroker) -> AsyncIterator[None]:
    """Answer messages inside the block, as ``warmstart consume`` does."""
    processor = Processor(Dispatcher(fake_context()), MemoryRecords(), Policy())
    source = MemorySource(broker)

    async def run() -> None:
        while True:
            for delivery in await source.fetch(4, 1):
                envelope = delivery.envelope()
                await delivery.settle(envelope, await processor(envelope))

    task = asyncio.create_task(run())
    try:
        yield
    finally:
        await cancel_and_wait(task)


async def test_answers() -> None:
    """A row is answered as its endpoint answers, with its usage, and the message has the row's id."""
    broker = MemoryBroker()
    rows = QueuedRows(MemorySubmitter(broker), error_form)
    async with worker(broker):
        answer = await rows.run(_batch(), {"prompt": "x", "max_new_tokens": 2}, "batch_1-1")
    assert (answer.status, answer.request_id) == (200, "batch_1-1")
    assert answer.body["usage"]["completion_tokens"] == answer.usage.completion_tokens > 0
    assert broker.sent == {"batch_1-1": 1}
    await rows.close()


@pytest.mark.parametrize(
    ("endpoint", "member"), [("/complete", "detail"), ("/v1/completions", "error"), ("/v1/messages", "type")]
)
async def test_errors(endpoint: str, member: str) -> None:
    """A row that the worker rejects gets the error's status, in the form of its endpoint; it is not sent again."""
    broker = MemoryBroker()
    rows = QueuedRows(MemorySubmitter(broker), error_form)
    async with worker(broker):
        answer = await rows.run(_batch(endpoint), {"prompt": 3}, "batch_1-1")
    assert answer.status == 400
    assert member in answer.body
    assert broker.sent == {"batch_1-1": 1}


async def test_deadline() -> None:
    """A worker does not begin a row whose batch has expired."""
    broker = MemoryBroker()
    async with worker(broker):
        answer = await QueuedRows(MemorySubmitter(broker), error_form).run(_batch(expires=1), {"prompt": "x"}, "a")
    assert answer.status == 408
    assert broker.dead["a"].startswith("deadline_passed")


async def test_no_broker(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Rows wait for a broker that is away, before they are sent and after it; the log says so once."""
    monkeypatch.setattr("handlers.dispatch.queued_rows.full_jitter", lambda *args: 0.005)
    broker = MemoryBroker(away=True)
    rows = QueuedRows(MemorySubmitter(broker), error_form)
    row = {"prompt": "x", "max_new_tokens": 2}
    tasks = [asyncio.create_task(rows.run(_batch(), row, f"row-{number}")) for number in range(5)]
    await asyncio.sleep(0.03)
    assert not broker.messages
    broker.away = False
    await until(lambda: len(broker.messages) == 5)
    broker.away = True
    await asyncio.sleep(0.03)
    broker.away = False
    async with worker(broker):
        answers = await asyncio.gather(*tasks)
    assert [answer.status for answer in answers] == [200] * 5
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert broker.sent.keys() == {f"row-{number}" for number in range(5)}


async def test_a_lost_message() -> None:
    """A row whose message the broker has lost is sent again after a while."""
    broker = MemoryBroker()
    rows = QueuedRows(MemorySubmitter(broker), error_form, resend_seconds=0.05)
    task = asyncio.create_task(rows.run(_batch(), {"prompt": "x", "max_new_tokens": 2}, "a"))
    await until(lambda: broker.messages)
    broker.messages.clear()
    async with worker(broker):
        assert (await task).status == 200


async def test_cancelled() -> None:
    """A row that is cancelled is not waited for, and a late answer is ignored."""
    broker = MemoryBroker()
    task = asyncio.create_task(QueuedRows(MemorySubmitter(broker), error_form).run(_batch(), {"prompt": "x"}, "a"))
    await until(lambda: broker.messages)
    await cancel_and_wait(task)
    async with worker(broker):
        await until(lambda: broker.sent)


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": 7, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}},
        {"input_tokens": 7, "output_tokens": 2, "input_tokens_details": {"cached_tokens": 4}},
        {"input_tokens": 3, "output_tokens": 2, "cache_read_input_tokens": 4},
    ],
)
def test_usage(usage: dict[str, Any]) -> None:
    """The usage is read from the forms of all APIs, and summed over the answers of a comparison."""
    assert usage_of({"usage": usage}) == TokenUsage(7, 2, 4)
    assert usage_of({"answers": [{"usage": usage}, {"usage": usage}]}) == TokenUsage(14, 4, 8)
    assert usage_of({"usage": usage, "answers": [{"value": "x"}]}) == TokenUsage(7, 2, 4)  # decisions
    assert usage_of({"usage": {"prompt_tokens": 7, "total_tokens": 7, "cache": None}}) == TokenUsage(7)
    assert usage_of({"text": "x"}) == TokenUsage()


def test_settings() -> None:
    """``BATCH_STREAM`` needs a folder and a broker, and names the stream beside the broker's own results."""
    with pytest.raises(SettingsError, match="BATCH_STREAM: set FILES_DIR"):
        Settings.load(batch_stream="batches", events_url="redis://127.0.0.1")
    settings = Settings.load(batch_stream="batches", files_dir="x", events_url="redis://127.0.0.1")
    queue = queue_of(settings)
    assert (queue.stream, queue.results) == ("batches", "warmstart:results")
