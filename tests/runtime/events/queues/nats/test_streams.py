"""The streams on a real NATS server: what is made, what is refused, and messages that are there once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from nats.js.api import ConsumerConfig, RetentionPolicy, StreamConfig
from nats.js.errors import ServiceUnavailableError

from runtime.errors import SettingsError
from runtime.events.outcome import Ack
from runtime.events.queues.base import BrokerUnavailable, QueueOptions
from runtime.events.queues.nats.source import NAMES, NatsSource, NatsSubmitter
from runtime.events.queues.nats.streams import token
from tests.support.nats_server import own_nats_server, real_nats
from tests.support.nats_work import eventually, opened, publish, read_all, settle, waiting, work


async def test_ids_become_subjects_that_tell_them_apart() -> None:
    """Every id is one token of a subject, no two ids the same, and what it was can be read from it."""
    ids = ["a.b", "a*b", "a>b", "a%2Eb", "%", "a b".replace(" ", "_"), "plain-id:7"]
    tokens = [token(id) for id in ids]
    assert len(set(tokens)) == len(ids)
    assert [unquote(each) for each in tokens] == ids
    assert not any(c in each for each in tokens for c in ".*> ")
    assert token("plain-id:7") == "plain-id:7"


async def test_a_second_answer_is_refused_after_the_duplicate_window(options: QueueOptions) -> None:
    """The stream of answers keeps the first one for as long as it keeps it, not just while it remembers message ids."""
    async with opened(replace(options, results_seconds=100)) as source, real_nats() as client:
        js = client.jetstream()
        config = (await js.stream_info(options.results)).config
        await js.update_stream(config.evolve(duplicate_window=0.2))
        await publish(options, {}, Warmstart_Id="once")
        (delivery,) = await source.fetch(1, 5)
        await delivery.settle(delivery.envelope(), Ack({"text": "first"}))
        await publish(options, {}, Warmstart_Id="once")

        async def forgotten() -> bool:
            try:  # a duplicate is confirmed
                await js.publish(f"{options.results}.once", b"", headers={"Nats-Msg-Id": "once"})
            except ServiceUnavailableError:
                return True
            return False

        await eventually(forgotten)
        (again,) = await source.fetch(1, 5)
        await again.settle(again.envelope(), Ack({"text": "second"}))
    ((_, _, body),) = await read_all(options, options.results)
    assert json.loads(body) == {"text": "first"}
    assert await waiting(options) == 0


async def test_a_refusal_for_another_reason_is_no_answer(options: QueueOptions) -> None:
    """A full stream of answers keeps the message: it is not let go before its answer is stored."""
    async with opened(options) as source, real_nats() as client:
        js = client.jetstream()
        await publish(options, {"prompt": "a"}, Warmstart_Id="a")
        await work(source)
        config = (await js.stream_info(options.results)).config
        await js.update_stream(config.evolve(max_msgs=1))
        await publish(options, {"prompt": "b"}, Warmstart_Id="b")
        (delivery,) = await source.fetch(1, 5)
        with pytest.raises(BrokerUnavailable, match="maximum messages exceeded"):
            await settle(delivery)
        assert await waiting(options) == 1
        await js.update_stream(config.evolve(max_msgs=10))
        await settle(delivery)
    assert [id for id, _, _ in await read_all(options, options.results)] == ["a", "b"]
    assert await waiting(options) == 0


async def test_full_dead_letters_keep_the_message(options: QueueOptions) -> None:
    """A message whose dead letter finds no room is neither answered nor let go."""
    async with opened(options) as source, real_nats() as client:
        js = client.jetstream()
        config = (await js.stream_info(options.dead)).config
        await js.update_stream(config.evolve(max_bytes=1))
        await publish(options, b"no json")
        (delivery,) = await source.fetch(1, 5)
        with pytest.raises(BrokerUnavailable, match="does not store a message in the stream"):
            await settle(delivery)
        assert await read_all(options, options.results) == []
        assert await waiting(options) == 1


async def test_nothing_is_made_that_is_not_to_be(options: QueueOptions) -> None:
    """Without leave to create, a missing stream or consumer stops the start and is named; nothing was made."""
    source = NatsSource(replace(options, create=False))
    with pytest.raises(SettingsError, match=rf"no stream {options.stream};"):
        await source.open()
    async with opened(options), real_nats() as client:
        await source.open()
        await client.jetstream().delete_consumer(options.stream, options.group)
        with pytest.raises(SettingsError, match=r"no consumer workers"):
            await source.open()
        await client.jetstream().delete_stream(options.dead)
        with pytest.raises(SettingsError, match=rf"no stream {options.dead}"):
            await source.open()
    await source.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_msgs_per_subject": 2}, r"--max-msgs-per-subject=1"),
        ({"discard_new_per_subject": False}, r"--discard-per-subject"),
        ({"max_age": 60}, r"keeps messages for 60 s instead of 86400 s; run nats stream edit"),
        ({"subjects": ["test-other.>"]}, r"must have the subjects"),
    ],
)
async def test_a_stream_that_forgets_answers_is_refused(
    options: QueueOptions, change: dict[str, Any], message: str
) -> None:
    """A stream of answers that would take two for an id, or forget them sooner than asked, stops the start."""
    good = StreamConfig(
        name=options.results,
        subjects=[f"{options.results}.>"],
        discard="new",
        discard_new_per_subject=True,
        max_msgs_per_subject=1,
        duplicate_window=60,
    )
    async with real_nats() as client:
        await client.jetstream().add_stream(good.evolve(**change))
    source = NatsSource(options)
    with pytest.raises(SettingsError, match=message) as caught:
        await source.open()
    assert options.results in str(caught.value)
    await source.close()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ConsumerConfig(ack_wait=5, max_deliver=-1), r"ack wait is 5 s instead of EVENTS_ACK_SECONDS \(30 s\)"),
        (ConsumerConfig(ack_wait=60, max_deliver=4), r"--max-deliver=-1"),
        (ConsumerConfig(ack_wait=60, headers_only=True), r"headers-only"),
        (ConsumerConfig(deliver_subject="somewhere"), r"pull consumer"),
        (ConsumerConfig(ack_wait=60, max_deliver=-1), None),
    ],
)
async def test_a_consumer_that_would_lose_work_is_refused(
    options: QueueOptions, config: ConsumerConfig, message: str | None
) -> None:
    """A consumer of that name with settings that lose or hurry work stops the start; a more patient one is used."""
    async with real_nats() as client:
        js = client.jetstream()
        await js.add_stream(StreamConfig(name=options.stream, subjects=[f"{options.stream}.>"]))
        await js.add_consumer(options.stream, config.evolve(durable_name=options.group))
    source = NatsSource(options)
    if message is None:
        await source.open()
    else:
        with pytest.raises(SettingsError, match=message):
            await source.open()
    await source.close()


async def test_a_second_group_on_a_queue_is_refused(options: QueueOptions) -> None:
    """A stream of work has one group; another is told so at start instead of stealing half of the messages."""
    async with opened(options):
        source = NatsSource(replace(options, group="others"))
        with pytest.raises(SettingsError, match="does not create the consumer others"):
            await source.open()
        await source.close()


async def test_a_stream_of_somebody_elses_is_worked_on(options: QueueOptions) -> None:
    """A stream with subjects of its own that keeps its messages is worked on like any, with the worker's operation."""
    async with real_nats() as client:
        js = client.jetstream()
        config = StreamConfig(name=options.stream, subjects=[f"theirs-{options.stream}.*"])
        await js.add_stream(config.evolve(retention=RetentionPolicy.LIMITS))
        await js.publish(f"theirs-{options.stream}.created", b'{"prompt": "hi"}')
        async with opened(replace(options, operation="generate")) as source:
            assert await work(source) == 1
            assert await work(source) == 0
    ((_, _, body),) = await read_all(options, options.results)
    assert json.loads(body)["text"] == "HI"


async def test_without_jetstream_the_start_says_so(tmp_path: Path) -> None:
    """A server without JetStream is a wrong setting, named with what to start."""
    with own_nats_server(tmp_path) as server:
        server.kill()
        server.arguments = ["-a", "127.0.0.1"]
        server.start()
        source = NatsSource(QueueOptions(server.url, "A", "g", "B", "C"))
        with pytest.raises(SettingsError, match="nats-server -js"):
            await source.open()
        await source.close()


@pytest.mark.parametrize("change", [{"stream": "a.b"}, {"group": "a b"}, {"dead": ""}, {"results": "WARMSTART"}])
def test_wrong_names_are_refused(change: dict[str, str]) -> None:
    """Names that NATS does not take, or one for two streams, stop the start."""
    good = QueueOptions("nats://host", NAMES[0], "g", NAMES[1], NAMES[2])
    NatsSource(good)
    with pytest.raises(SettingsError, match=r"stream|group|dead"):
        NatsSource(replace(good, **change))
    with pytest.raises(SettingsError, match=r"stream|group|dead"):
        NatsSubmitter(replace(good, **change))
