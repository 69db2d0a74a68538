"""What is told of each delivery: its line, its metrics, its record in the audit log."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from runtime.audit.chain import prompt_hash
from runtime.audit.log import AuditLog
from runtime.errors import InvalidRequest
from runtime.events import consumer as consumer_module
from runtime.events.audit import EventAudit
from runtime.events.consumer import Consumer
from runtime.events.delivery_report import DeliveryReporter
from runtime.events.envelope import Envelope
from runtime.events.idempotency.memory import MemoryRecords
from runtime.events.outcome import Policy
from runtime.events.processor import Processor, SendChunk
from runtime.telemetry.event_metrics import EventMetrics
from runtime.telemetry.logging import JsonFormatter
from runtime.telemetry.request_scope import current_caller, observe_usage
from runtime.telemetry.tracing import caller_trace
from runtime.types import TokenUsage
from tests.events.memory_queue import MemoryBroker, MemorySource
from tests.runtime.audit.logs import KEYS, check, records
from tests.support.fakes import until

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"
SECRET = "a prompt that is nobody's business"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer_module, "_FETCH_SECONDS", 0.02)


@pytest.fixture
def lines() -> Iterator[Any]:
    """What is logged of events, as JSON."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("warmstart.events")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lambda: [line for line in map(json.loads, stream.getvalue().splitlines()) if "outcome" in line]
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


class Work:
    """An operation that costs tokens, and notes what it is called among."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    async def __call__(self, envelope: Envelope, send_chunk: SendChunk | None = None) -> Mapping[str, Any]:
        self.seen.append((current_caller(), caller_trace.get()))
        observe_usage(TokenUsage(7, 3))
        if "wrong" in envelope.data:
            raise InvalidRequest("wrong")
        return {}


async def work_off(broker: MemoryBroker, work: Work, audit: EventAudit | None = None, answers: int = 1) -> None:
    """Let a worker deal with what is there."""
    registry = CollectorRegistry()
    source = MemorySource(broker)
    policy = Policy(max_deliveries=2, transient_seconds=0.001)
    worker = Consumer(
        source,
        Processor(work, MemoryRecords(), policy),
        DeliveryReporter(source.name, ["generate"], EventMetrics(registry), audit),
        concurrency=1,
        ready=_always,
    )
    task = asyncio.create_task(worker.run())
    await until(lambda: len(broker.answers) == answers and not broker.messages)
    worker.stop()
    await task


async def _always() -> None:
    pass


async def test_a_line_for_each_delivery(lines: Any) -> None:
    """Who asked for what, how it ended and what it cost; nothing of what was asked."""
    broker, work = MemoryBroker(), Work()
    broker.put("generate", {"prompt": SECRET}, "good", traceparent=PARENT)
    broker.put("generate", {"prompt": SECRET}, "good", traceparent="nonsense")
    broker.put("generate", {"prompt": SECRET, "wrong": 1}, "bad")
    broker.publish(SECRET.encode(), {})
    await work_off(broker, work, answers=3)
    first, again, bad, unreadable = lines()
    duration = first.pop("duration_ms")
    assert duration >= 0
    assert (
        first.items()
        >= {
            "level": "INFO",
            "logger": "warmstart.events",
            "message": "event acked",
            "request_id": "good",
            "trace_id": TRACE,
            "parent_id": "00f067aa0ba902b7",
            "source": "memory:requests",
            "operation": "generate",
            "attempt": 1,
            "outcome": "acked",
            "code": None,
            "tokens_in": 7,
            "tokens_out": 3,
        }.items()
    )
    assert (again["outcome"], again["tokens_in"], again.get("trace_id")) == ("repeated", None, None)
    assert (bad["outcome"], bad["code"], bad["level"]) == ("rejected", "invalid_request", "WARNING")
    assert (unreadable["outcome"], unreadable["operation"], unreadable.get("request_id")) == ("rejected", None, None)
    assert SECRET not in json.dumps(lines())


async def test_work_knows_whose_it_is() -> None:
    """Answers kept for HTTP's callers are not for events; spans go beneath the sender's; nothing is left over."""
    broker, work = MemoryBroker(), Work()
    broker.put("generate", {}, "a", traceparent=PARENT)
    broker.put("generate", {}, "b")
    await work_off(broker, work, answers=2)
    assert work.seen == [("events:memory:requests", {"traceparent": PARENT}), ("events:memory:requests", None)]


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[AuditLog]:
    """An audit log."""
    log = AuditLog(tmp_path / "audit.log", KEYS, 10**6)
    log.open()
    yield log
    log.close()


async def test_a_record_for_each_delivery(log: AuditLog, tmp_path: Path) -> None:
    """In the chain, with the prompt's keyed hash only."""
    broker, work = MemoryBroker(), Work()
    broker.put("generate", {"prompt": SECRET, "model": "m"}, "good", traceparent=PARENT)
    broker.put("generate", {"prompt": SECRET, "wrong": 1}, "bad")
    broker.publish(SECRET.encode(), {})
    await work_off(broker, work, EventAudit(log, KEYS.prompt, required=False), answers=3)
    log.close()
    path = tmp_path / "audit.log"
    assert check(path).problem is None
    good, bad, unreadable = [record for record in records(path) if record["event"] == "delivery"]
    assert (
        good.items()
        >= {
            "request_id": "good",
            "trace_id": TRACE,
            "source": "memory:requests",
            "operation": "generate",
            "attempt": 1,
            "result": "ok",
            "reason": None,
            "tokens_in": 7,
            "tokens_out": 3,
            "model": "m",
            "prompt_hash": prompt_hash(KEYS.prompt, {"prompt": SECRET}),
        }.items()
    )
    assert (bad["result"], bad["reason"]) == ("refused", "invalid_request")
    assert (unreadable["request_id"], unreadable["result"], unreadable["prompt_hash"]) == (None, "refused", None)
    assert SECRET not in path.read_text()


class Failing(AuditLog):
    """One that fails for so many records."""

    left = 0
    unwritable = False

    @property
    def failing(self) -> bool:
        """See ``AuditLog``."""
        return self.unwritable

    def write(self, event: str, fields: Mapping[str, Any]) -> bool:
        """See ``AuditLog``."""
        if self.left and event == "delivery":
            self.left -= 1
            return False
        return super().write(event, fields)


@pytest.mark.parametrize("required", [True, False])
async def test_what_cannot_be_recorded(tmp_path: Path, lines: Any, required: bool) -> None:
    """Where records are required, the answer is held back until there is one, and not computed again; else it goes."""
    log = Failing(tmp_path / "audit.log", KEYS, 10**6)
    log.open()
    log.left = 2
    broker, work = MemoryBroker(), Work()
    broker.put("generate", {}, "a")
    await work_off(broker, work, EventAudit(log, KEYS.prompt, required=required))
    log.close()
    outcomes = [(line["outcome"], line["code"]) for line in lines()]
    held_back = [("retried", "audit_unavailable")] * 2
    assert outcomes == ([*held_back, ("repeated", None)] if required else [("acked", None)])
    assert len(work.seen) == 1


async def test_nothing_is_done_unrecorded(tmp_path: Path, lines: Any) -> None:
    """While a log that is required fails, operations are not even called."""
    log = Failing(tmp_path / "audit.log", KEYS, 10**6)
    log.open()
    log.unwritable = True
    broker, work = MemoryBroker(), Work()
    broker.put("generate", {}, "a")
    task = asyncio.create_task(work_off(broker, work, EventAudit(log, KEYS.prompt, required=True)))
    await until(lambda: lines())
    assert work.seen == []
    log.unwritable = False
    await task
    assert broker.answers["a"][0] == "result"
    log.close()
