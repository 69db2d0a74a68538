"""``warmstart consume``: its arguments, and the worker that is made of them. The process is in tests/events."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from handlers.cli import consume as consume_command
from handlers.cli.consume import worker_settings
from handlers.cli.queue_options import queue_of
from handlers.dispatch.consumer import consumer_of, model_ready
from handlers.dispatch.events import Dispatcher
from handlers.operations import OPERATIONS
from runtime.errors import ModelUnavailable, SettingsError
from runtime.events.delivery_report import DeliveryReporter
from runtime.events.idempotency.memory import MemoryRecords
from runtime.events.outcome import Policy
from runtime.events.processor import Processor
from runtime.events.queues.base import QueueOptions
from runtime.settings import Settings
from runtime.telemetry.event_metrics import EventMetrics
from tests.events.memory_queue import MemoryBroker, MemorySource
from tests.support.fakes import FakeEngine, FakeModels, fake_context, until

REDIS = "redis://:hunter2@127.0.0.1:6379/0"


def parsed(*arguments: str) -> argparse.Namespace:
    """The command's options."""
    parser = argparse.ArgumentParser()
    consume_command.add(parser.add_subparsers(), run=None)
    return parser.parse_args(["consume", *arguments])


def test_defaults() -> None:
    """What each broker is used to, and what the settings say."""
    options = parsed(REDIS)
    settings = worker_settings(options)
    queue = queue_of(options, settings, options.url, options.operation)
    assert queue == QueueOptions(
        url=REDIS,
        stream="warmstart:requests",
        group="warmstart",
        results="warmstart:results",
        dead="warmstart:dead",
        reply_prefixes=queue.reply_prefixes,
        results_seconds=86_400,
    )
    assert queue.reply_prefixes
    assert (settings.port, settings.events_concurrency) == (8001, 16)
    assert worker_settings(parsed(REDIS, "--serve")).port == 8000


def test_everything_can_be_said() -> None:
    """Options go before settings."""
    words = "--stream a --group b --results c --dead d --operation chat --concurrency 3 --max-deliveries 7"
    options = parsed(
        *words.split(), "--ack-seconds", "9", "--port", "0", "--no-create", "--model", "m", "--host", "::1"
    )
    settings = worker_settings(options)
    queue = queue_of(options, settings, REDIS, options.operation)
    assert (queue.stream, queue.group, queue.results, queue.dead, queue.operation) == ("a", "b", "c", "d", "chat")
    assert (settings.events_max_deliveries, queue.ack_seconds, queue.create) == (7, 9.0, False)
    assert (settings.port, settings.host, settings.model_name, settings.events_concurrency) == (0, "::1", "m", 3)


def test_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A URL with a password need not stand in the list of processes."""
    monkeypatch.setenv("EVENTS_URL", REDIS)
    monkeypatch.setenv("EVENTS_REPLY_PREFIXES", "a.,b.")
    options = parsed()
    queue = queue_of(options, worker_settings(options), options.url)
    assert (queue.url, queue.reply_prefixes) == (REDIS, ("a.", "b."))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "EVENTS_URL"),
        (["http://127.0.0.1"], "EVENTS_URL: it must begin with"),
        ([REDIS, "--concurrency", "0"], "EVENTS_CONCURRENCY"),
        ([REDIS, "--max-deliveries", "0"], "EVENTS_MAX_DELIVERIES"),
        ([REDIS, "--ack-seconds", "0"], "EVENTS_ACK_SECONDS"),
    ],
)
def test_what_is_wrong_is_named(arguments: list[str], said: str) -> None:
    """Without the URL's password."""
    options = parsed(*arguments)
    with pytest.raises(SettingsError, match=said) as caught:
        queue_of(options, worker_settings(options), options.url)
    assert "hunter2" not in str(caught.value)


def consumer(broker: MemoryBroker, engine: FakeEngine, **settings: Any) -> Any:
    """A worker on a fake model."""
    source = MemorySource(broker, "complete")
    loaded = Settings.load(**settings)
    ctx = fake_context(engine)
    dispatch = Dispatcher(ctx, loaded.events_operations)
    policy = Policy(max_deliveries=loaded.events_max_deliveries)
    processor = Processor(dispatch, None if loaded.idempotency == "off" else MemoryRecords(), policy)
    reporter = DeliveryReporter(source.name, OPERATIONS, EventMetrics(CollectorRegistry()))
    return consumer_of(loaded, source, ctx, processor, reporter)


async def run_until(worker: Any, condition: Any) -> None:
    """Let it work until then."""
    task = asyncio.create_task(worker.run())
    await until(condition)
    worker.stop()
    await task


async def test_messages_become_answers() -> None:
    """Operations get payloads, their work waits behind people's, and chunks go to those who want them."""
    broker, engine = MemoryBroker(), FakeEngine()
    broker.put("complete", {"prompt": "x"}, "a")
    broker.put("chat", {"messages": [{"role": "user", "content": "x"}]}, "b", stream=True)
    broker.put("nothing", {}, "c")
    broker.put("clear_cache", {}, "d")
    await run_until(consumer(broker, engine), lambda: len(broker.answers) == 4)
    assert json.loads(broker.answers["a"][1])["text"] == "Hello there."
    assert json.loads(broker.answers["b"][1])["choices"][0]["message"]["content"] == "Hello there."
    assert [json.loads(broker.answers[id][1])["error"]["code"] for id in "cd"] == ["not_found", "insufficient_scope"]
    assert all(job.background for jobs in engine.jobs for job in jobs)
    assert {id for id, _ in broker.chunks} == {"b"}
    assert [reply.chunk for _, reply in broker.chunks] == list(range(len(broker.chunks)))


@pytest.mark.parametrize(("kept", "limited"), [("off", True), ("memory", True), ("sqlite", False), ("redis", False)])
async def test_crashes_are_counted_by_deliveries_where_nothing_else_tells(kept: str, limited: bool) -> None:
    """Records that outlive the process tell a crash from a busy time; without them, many deliveries are suspect."""
    broker = MemoryBroker()
    broker.put("complete", {"prompt": "x"}, "a")
    broker.messages[0].attempt = 20
    worker = consumer(broker, FakeEngine(), idempotency=kept, events_max_deliveries=5)
    await run_until(worker, lambda: broker.answers)
    assert broker.answers["a"][0] == ("error" if limited else "result")


async def test_it_waits_for_a_model(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long that takes; what is in the way is told once."""
    monkeypatch.setattr("handlers.dispatch.consumer._MODEL_SECONDS", 0.001)
    models = FakeModels(ready=False, failure=ModelUnavailable("no hub"))
    ctx = replace(fake_context(), models=models)
    with caplog.at_level(logging.WARNING, "warmstart.events"):
        task = asyncio.create_task(model_ready(ctx))
        await until(lambda: caplog.records)
        models.failure = None
        await until(lambda: models.leases == 0)
        assert not task.done()
        models.ready = True
        await asyncio.wait_for(task, 5)
    assert [record.getMessage() for record in caplog.records] == [
        "no messages are taken until there is a model: no hub"
    ]


async def test_a_model_that_is_there_is_not_waited_for() -> None:
    """Asked before each fetch, it costs nothing."""
    ctx = fake_context(failure=AssertionError("nobody is to ask"))
    await model_ready(ctx)
