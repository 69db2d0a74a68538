"""Working on AWS Lambda's messages, with a dispatch of its own; whole functions are in tests/handlers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from runtime.errors import InvalidRequest, TooManyRequests
from runtime.events.aws_lambda.worker import LambdaReply, LambdaWorker, Send
from runtime.events.delivery_report import DeliveryReporter
from runtime.events.envelope import Envelope
from runtime.events.idempotency.memory import MemoryRecords
from runtime.events.outcome import Policy
from runtime.events.processor import Processor
from runtime.telemetry.event_metrics import EventMetrics
from tests.support.fakes import until
from tests.support.lambda_events import attributes, load, sqs

ONE = {"messageAttributes": attributes(Warmstart_Operation="echo"), "body": '{"say": "x"}'}


class _Echo:
    """Answers what it was asked, once it may."""

    def __init__(self) -> None:
        self.may = asyncio.Event()
        self.may.set()
        self.asked: list[Envelope] = []
        self.running = 0

    async def __call__(self, envelope: Envelope, send_chunk: Any = None) -> Mapping[str, Any]:
        self.asked.append(envelope)
        self.running += 1
        try:
            await self.may.wait()
            if envelope.data.get("say") == "busy":
                raise TooManyRequests("full")
            return envelope.data
        finally:
            self.running -= 1


def _worker(echo: _Echo, send: Send | None = None, registry: CollectorRegistry | None = None) -> LambdaWorker:
    metrics = EventMetrics(registry or CollectorRegistry())

    @cache
    def reporter(kind: str) -> DeliveryReporter:
        return DeliveryReporter(kind, {"echo"}, metrics)

    return LambdaWorker(Processor(echo, MemoryRecords(), Policy()), reporter, max_concurrency=4, send=send)


async def test_answers_are_sent_on_a_thread() -> None:
    """Clients of AWS block; the engine's loop must not."""
    threads = []

    def send(message: Mapping[str, Any], answer: LambdaReply) -> None:
        threads.append(threading.current_thread())

    await _worker(_Echo(), send).batch(sqs(ONE)["Records"], None)
    assert threads[0] is not threading.main_thread()


async def test_nothing_is_sent_for_what_comes_again() -> None:
    """Only last words are."""
    sent: list[LambdaReply] = []
    busy = ONE | {"body": '{"say": "busy"}'}
    worker = _worker(_Echo(), lambda message, answer: sent.append(answer))
    found = await worker.batch(sqs(busy, ONE)["Records"], None)
    assert found == {"batchItemFailures": [{"itemIdentifier": "message-1"}]}
    (answer,) = sent
    assert answer == LambdaReply(
        "result",
        b'{"say": "x"}',
        {
            "Warmstart-Id": "message-2",
            "Warmstart-Operation": "echo",
            "Warmstart-Attempt": "1",
            "Warmstart-Kind": "result",
        },
    )


async def test_a_damaged_record_begins_nothing() -> None:
    """Not even of those beside it: the whole batch comes again."""
    echo = _Echo()
    records = sqs(ONE, ONE)["Records"]
    del records[1]["messageId"]
    with pytest.raises(InvalidRequest, match="sqs"):
        await _worker(echo).batch(records, None)
    assert echo.asked == []


async def test_time_that_is_up_gives_work_back() -> None:
    """Also what still waits for its turn; the next delivery finds nothing taken."""
    echo = _Echo()
    echo.may.clear()
    worker, records = _worker(echo), sqs(*[ONE] * 6)["Records"]
    found = await worker.batch(records, asyncio.get_running_loop().time() + 0.02)
    assert len(found["batchItemFailures"]) == 6
    assert echo.running == 0
    echo.may.set()
    assert await worker.batch(records, None) == {"batchItemFailures": []}


async def test_cancellation_leaves_nothing_behind() -> None:
    """As when a wait for the function is cut short from outside."""
    echo, registry = _Echo(), CollectorRegistry()
    echo.may.clear()
    worker = _worker(echo, registry=registry)
    task = asyncio.create_task(worker.batch(sqs(ONE)["Records"], None))
    await until(lambda: echo.running)
    assert registry.get_sample_value("warmstart:events_in_flight", {"source": "sqs"}) == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: not echo.running)
    assert registry.get_sample_value("warmstart:events_in_flight", {"source": "sqs"}) == 0
    echo.may.set()
    assert await worker.batch(sqs(ONE)["Records"], None) == {"batchItemFailures": []}


async def test_single_events_are_told_apart_in_the_metrics() -> None:
    """By their kind, operation and outcome."""
    registry = CollectorRegistry()
    worker = _worker(_Echo(), registry=registry)
    await worker.single("direct", {"operation": "echo", "payload": {"say": "x"}}, "id", None)
    with pytest.raises(TooManyRequests):
        await worker.single("direct", {"operation": "echo", "payload": {"say": "busy"}}, "id2", None)
    with pytest.raises(InvalidRequest):
        await worker.single("eventbridge", load("eventbridge_schedule"), "id3", None)

    def count(source: str, operation: str, outcome: str) -> float | None:
        labels = {"source": source, "operation": operation, "outcome": outcome}
        return registry.get_sample_value("warmstart:events_total", labels)

    assert count("direct", "echo", "acked") == 1
    assert count("direct", "echo", "retried") == 1
    assert count("eventbridge", "other", "rejected") == 1
