"""Against KAFKA_URL, or librdkafka's mock cluster (see tests/support/kafka_broker.py), with topics of each test's
own.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.errors import KafkaConnectionError

from runtime.errors import InternalError, InvalidRequest, PayloadTooLarge, SettingsError
from runtime.events.envelope import Envelope
from runtime.events.idempotency.memory import MemoryRecords
from runtime.events.outcome import Ack, Policy, Reject, Retry
from runtime.events.processor import Processor, SendChunk
from runtime.events.queues.base import BrokerUnavailable, QueueOptions, Reply
from runtime.events.queues.factory import default_names, default_reply_prefixes, open_source, open_submitter
from runtime.events.queues.kafka import connection as kafka_connection
from runtime.events.queues.kafka import source as kafka
from runtime.events.queues.kafka.connection import client_options, ensure_topics
from runtime.events.queues.kafka.delivery import KafkaDelivery
from runtime.events.queues.kafka.source import NAMES, REPLY_PREFIXES, KafkaSource, KafkaSubmitter
from tests.support.kafka_broker import KAFKA_URL, MockKafka, mock_kafka
from tests.support.queue_work import Opened, echo, eventually, one, work

BODY = b'{"prompt": "Hi"}'
ERROR = InternalError("it failed")
ASKED = Envelope("1", "test", "warmstart.generate", "generate", {"prompt": "a"})


class Bench(Opened):
    """One test's topics, and plain clients beside the adapter."""

    def __init__(self, options: QueueOptions, producer: AIOKafkaProducer, stack: AsyncExitStack) -> None:
        super().__init__(options, KafkaSource, KafkaSubmitter, stack)
        self._producer = producer

    async def publish(self, value: bytes | None = BODY, **details: Any) -> None:
        """Into the first partition, unless told otherwise; headers as a dict."""
        headers = [(name, text.encode()) for name, text in details.pop("headers", {}).items()]
        await self._producer.send_and_wait(
            self.options.stream, value, **{"partition": 0, **details, "headers": headers}
        )

    async def all(self, topic: str) -> list[Any]:
        """Everything that is in a topic."""
        consumer = AIOKafkaConsumer(
            topic, **client_options(self.options.url), group_id=None, auto_offset_reset="earliest", fetch_max_wait_ms=10
        )
        await consumer.start()
        try:
            ends = await consumer.end_offsets(list(consumer.assignment()))
            found: list[Any] = []
            while any([await consumer.position(partition) < end for partition, end in ends.items()]):
                for records in (await consumer.getmany(timeout_ms=50)).values():
                    found += records
            return sorted(found, key=lambda record: (record.partition, record.offset))
        finally:
            await consumer.stop()


def told(record: Any) -> dict[str, str]:
    return {name: value.decode() for name, value in record.headers}


@pytest.fixture
def mock() -> Iterator[MockKafka]:
    with mock_kafka() as broker:
        yield broker


@pytest.fixture
async def bench(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    name = f"warmstart-test.{uuid4().hex}"
    mock = None if KAFKA_URL else request.getfixturevalue("mock")
    options = QueueOptions(
        url=mock.url if mock else KAFKA_URL or "",
        stream=name,
        group=name,
        results=f"{name}.results",
        dead=f"{name}.dead",
        operation="generate",
        ack_seconds=2.0 if mock else 6.0,  # Kafka takes none shorter (group.min.session.timeout.ms)
        reply_prefixes=REPLY_PREFIXES,
    )
    if mock:
        perform = GroupCoordinator._perform_assignment

        async def after_followers(self: GroupCoordinator, response: Any) -> Any:
            assignment = await perform(self, response)
            if len(response.members) > 1:
                await asyncio.sleep(0.3)  # the mock answers no follower that comes after the leader
            return assignment

        monkeypatch.setattr(GroupCoordinator, "_perform_assignment", after_followers)
        for topic in (options.stream, options.results, options.dead):
            mock.topic(topic, 4)
    async with AsyncExitStack() as stack:
        producer = AIOKafkaProducer(**client_options(options.url))
        stack.push_async_callback(producer.stop)
        await producer.start()
        if not mock:
            await ensure_topics(options)
        yield Bench(options, producer, stack)


def test_sources_finds_the_adapter() -> None:
    """kafka:// is this adapter's."""
    options = QueueOptions("kafka://host", "a", "b", "c", "d")
    assert isinstance(open_source(options), KafkaSource)
    assert isinstance(open_submitter(options), KafkaSubmitter)
    assert default_names("kafka://host") == NAMES
    assert default_reply_prefixes("kafka://host") == REPLY_PREFIXES


def test_what_a_url_says() -> None:
    """Brokers, user and password (percent-encoded where they must be), mechanism, and TLS with the system's roots."""
    plain = client_options("kafka://one:1,two:2")
    assert plain["bootstrap_servers"] == ["one:1", "two:2"]
    assert plain["security_protocol"] == "PLAINTEXT"
    full = client_options("kafka://me%40x:p%3Aw@one:1,two:2?tls=true&mechanism=SCRAM-SHA-512")
    assert full["bootstrap_servers"] == ["one:1", "two:2"]
    assert (full["security_protocol"], full["sasl_mechanism"]) == ("SASL_SSL", "SCRAM-SHA-512")
    assert (full["sasl_plain_username"], full["sasl_plain_password"]) == ("me@x", "p:w")
    assert full["ssl_context"].verify_mode == ssl.CERT_REQUIRED
    user = client_options("kafka://me:pw@one")
    assert (user["security_protocol"], user["sasl_mechanism"]) == ("SASL_PLAINTEXT", "PLAIN")
    assert client_options("kafka://one?tls=true")["security_protocol"] == "SSL"


@pytest.mark.parametrize(
    "url", ["kafka://", "kafka://me:s3cret@", "kafka://a/topic", "kafka://a?tls=1", "kafka://a?x=1"]
)
def test_a_wrong_url_is_named(url: str) -> None:
    """By its setting, and without the password."""
    with pytest.raises(SettingsError, match="EVENTS_URL") as caught:
        KafkaSource(QueueOptions(url, "a", "b", "c", "d"))
    assert "s3cret" not in str(caught.value)


async def test_nobody_there(unused_tcp_port: int) -> None:
    """Is a broker that is away, and the password stays untold."""
    options = QueueOptions(f"kafka://me:s3cret@127.0.0.1:{unused_tcp_port}", "a", "b", "c", "d")
    source, submitter = KafkaSource(options), KafkaSubmitter(options)
    for connect in (source.open, submitter.open, source.lag, lambda: source.fetch(1, 1.0)):
        with pytest.raises(BrokerUnavailable) as caught:
            await connect()
        assert "s3cret" not in f"{caught.value!r}{source.name}"
    with pytest.raises(BrokerUnavailable):
        await submitter.submit(ASKED, wait=True)
    await source.close()
    await submitter.close()


async def test_a_message_is_read_and_answered(bench: Bench) -> None:
    """Id, payload and headers make the envelope; the answer has the id as its key. Then the offset is the group's."""
    source = await bench.source()
    headers = {"Warmstart-Id": "job-1", "Warmstart-Operation": "chat", "Warmstart-Deadline": "4000000000"}
    await bench.publish(key=b"anyone", headers=headers | {"traceparent": "00-1", "Warmstart-Stream": "true"})
    delivery = await one(source)
    envelope = delivery.envelope()
    assert envelope == Envelope(
        "job-1", source.name, "warmstart.chat", "chat", {"prompt": "Hi"}, "00-1", 1, 4e9, None, False
    )
    await delivery.extend()
    await delivery.settle(envelope, Ack({"text": "Héllo"}))
    [answer] = await bench.all(bench.options.results)
    assert (answer.key, answer.value) == (b"job-1", b'{"text": "H\\u00e9llo"}')
    assert told(answer) == {"Warmstart-Id": "job-1", "Warmstart-Kind": "result", "Warmstart-Attempt": "1"}
    await source.close()
    assert await (await bench.source()).fetch(1, 1.0) == []


async def test_a_message_without_an_id_has_its_place(bench: Bench) -> None:
    """Topic, partition and offset; it keeps that id when it comes again from another place."""
    source = await bench.source()
    await bench.publish(partition=1, key=b"k", headers={"mine": "yes"})
    first = await one(source)
    id = first.envelope().id
    assert id == f"{bench.options.stream}:1:0"
    await first.settle(first.envelope(), Retry(0.0, ERROR))
    second = await one(source)
    assert (second.envelope().id, second.attempt) == (id, 2)
    assert (second._record.key, told(second._record)["mine"]) == (b"k", "yes")


async def test_a_retry_waits_and_holds_up_no_other(bench: Bench) -> None:
    """Those behind it in the same partition are worked on meanwhile; it counts its deliveries."""
    source = await bench.source()
    await bench.publish(headers={"Warmstart-Id": "late"})
    delivery = await one(source)
    begun = asyncio.get_running_loop().time()
    await delivery.settle(delivery.envelope(), Retry(1.5, ERROR))
    for number in range(5):
        await bench.publish(headers={"Warmstart-Id": str(number)})
    for number in range(5):
        other = await one(source)
        assert other.envelope().id == str(number)
        await other.settle(other.envelope(), Ack({}))
    again = await one(source)
    assert asyncio.get_running_loop().time() - begun >= 1.5
    assert (again.envelope().id, again.attempt) == ("late", 2)


async def test_a_worker_that_ends_loses_no_message_that_waits(bench: Bench) -> None:
    """It is in the topic, not in the worker; the next one keeps it for its time again, and the count goes on."""
    source = await bench.source()
    await bench.publish(headers={"Warmstart-Id": "late"})
    delivery = await one(source)
    await delivery.settle(delivery.envelope(), Retry(1.0, ERROR))
    assert await source.fetch(1, 0.8) == []
    await source.close()
    again = await one(await bench.source())
    assert (again.envelope().id, again.attempt) == ("late", 2)


@pytest.mark.parametrize("delay", ["", "-1", "soon", "1e9", "nan"])
async def test_a_senders_own_headers_do_no_harm(bench: Bench, delay: str) -> None:
    """What is no delay is none, and what is no count neither."""
    source = await bench.source()
    await bench.publish(headers={"Warmstart-Delay": delay, "Warmstart-Attempt": delay})
    assert (await one(source)).attempt == 1


async def test_only_what_is_settled_without_a_gap_is_committed(bench: Bench) -> None:
    """Three of four are settled, out of order: the next worker begins at the first that is not."""
    source = await bench.source()
    for number in range(4):
        await bench.publish(headers={"Warmstart-Id": str(number)})
    deliveries: list[KafkaDelivery] = []
    while len(deliveries) < 4:
        deliveries += await source.fetch(4 - len(deliveries), 5.0)
    for number in (3, 0, 2):
        await deliveries[number].settle(deliveries[number].envelope(), Ack({}))
    await source.close()
    with pytest.raises(BrokerUnavailable):
        await deliveries[1].settle(deliveries[1].envelope(), Ack({}))
    assert sorted(answer.key for answer in await bench.all(bench.options.results)) == [b"0", b"2", b"3"]
    other = await bench.source()
    left: list[KafkaDelivery] = []
    while len(left) < 3:
        left += await other.fetch(4, 5.0)
    assert [delivery.envelope().id for delivery in left] == ["1", "2", "3"]


async def test_it_takes_no_more_than_there_is_room_for(bench: Bench) -> None:
    """What it is not asked for stays, and is counted as lag."""
    source = await bench.source()
    for number in range(10):
        await bench.publish(headers={"Warmstart-Id": str(number)})
    assert await eventually(source.lag) == 10
    first = await source.fetch(3, 5.0)
    assert 1 <= len(first) <= 3
    assert await source.lag() == 10 - len(first)
    second = await source.fetch(2, 5.0)
    assert [delivery.envelope().id for delivery in (*first, *second)] == [
        str(number) for number in range(len(first) + len(second))
    ]


async def test_a_cancelled_fetch_loses_nothing(bench: Bench) -> None:
    """What it has read comes with the next one."""
    source = await bench.source()
    got = []
    for number in range(10):
        await bench.publish(headers={"Warmstart-Id": str(number)})
        fetching = asyncio.create_task(source.fetch(1, 5.0))
        await asyncio.wait([fetching], timeout=0.05 * (number % 4))
        fetching.cancel()
        await asyncio.wait([fetching])
        if not fetching.cancelled():
            got += fetching.result()
    while len(got) < 10:
        got += await source.fetch(10, 5.0)
    assert [delivery.envelope().id for delivery in got] == [str(number) for number in range(10)]


async def test_messages_that_wait_are_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """With as many as a worker keeps it reads no more until one of them is due."""
    monkeypatch.setattr(kafka, "_MAX_HELD", 2)
    source = await bench.source()
    for number in range(2):
        await bench.publish(headers={"Warmstart-Id": str(number), "Warmstart-Delay": "1.5"})
    await bench.publish(headers={"Warmstart-Id": "2"})
    assert [await one(source) for _ in range(3)]
    assert source._held == []


async def test_a_rejected_message_is_answered_and_buried(bench: Bench) -> None:
    """Key, value and headers as they came, with the reason; put back among the work it begins anew."""
    source = await bench.source()
    await bench.publish(key=b"k", headers={"mine": "yes", "warmstart-attempt": "2", "Warmstart-Delay": "0.1"})
    delivery = await one(source)
    assert delivery.attempt == 3
    await delivery.settle(delivery.envelope(), Reject(InvalidRequest("prompt: no", param="prompt")))
    [answer] = await bench.all(bench.options.results)
    id = f"{bench.options.stream}:0:0"
    assert (answer.key.decode(), json.loads(answer.value)["error"]["param"]) == (id, "prompt")
    assert told(answer)["Warmstart-Kind"] == "error"
    [buried] = await bench.all(bench.options.dead)
    assert (buried.key, buried.value) == (b"k", BODY)
    assert told(buried) == {
        "mine": "yes",
        "Warmstart-Id": id,
        "Warmstart-Attempt": "3",
        "Warmstart-Reason": "invalid_request: prompt: no",
    }
    await bench.publish(buried.value, key=buried.key, headers=told(buried))
    again = await one(source)
    assert (again.envelope().id, again.attempt) == (id, 1)


@pytest.mark.parametrize("value", [None, b"", b"[]", b"\xff", b"{"])
async def test_what_cannot_be_read_is_answered_and_buried_too(bench: Bench, value: bytes | None) -> None:
    """And the partition goes on."""
    source = await bench.source()
    await bench.publish(value, key=b"k")
    delivery = await one(source)
    with pytest.raises(InvalidRequest) as caught:
        delivery.envelope()
    await delivery.settle(None, Reject(caught.value))
    [buried], [answer] = await bench.all(bench.options.dead), await bench.all(bench.options.results)
    assert (buried.value, answer.key) == (value, f"{bench.options.stream}:0:0".encode())


@pytest.mark.parametrize("reply_to", ["mine", "{stream}", "{results}", "{dead}"])
async def test_answers_go_only_where_they_may(bench: Bench, reply_to: str) -> None:
    """Not to any topic, and never to our own, whatever the prefixes allow."""
    source = await bench.source(reply_prefixes=("warmstart",))
    ours = {name: getattr(bench.options, name) for name in ("stream", "results", "dead")}
    await bench.publish(headers={"Warmstart-Reply-To": reply_to.format_map(ours)})
    with pytest.raises(InvalidRequest, match="EVENTS_REPLY_PREFIXES"):
        (await one(source)).envelope()


async def test_an_answer_goes_to_its_reply_address_too(bench: Bench, mock: MockKafka) -> None:
    """To a topic that the prefixes allow; one that there cannot be does no harm."""
    source = await bench.source()
    for reply_to in (f"warmstart.replies.{uuid4().hex}", "warmstart.replies no topic"):
        await bench.publish(headers={"Warmstart-Reply-To": reply_to})
        delivery = await one(source)
        await delivery.settle(delivery.envelope(), Ack({"of": reply_to}))
        if " " not in reply_to:
            assert [json.loads(reply.value) for reply in await bench.all(reply_to)] == [{"of": reply_to}]
    assert len(await bench.all(bench.options.results)) == 2


async def test_an_answer_too_large_is_an_error(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be no better the next time; and a message too large is refused to its sender."""
    monkeypatch.setattr(kafka_connection, "_MAX_MESSAGE_BYTES", 2000)
    source, submitter = await bench.source(), await bench.submitter()
    replies = await submitter.submit(ASKED, wait=True)
    delivery = await one(source)
    await delivery.settle(delivery.envelope(), Ack({"text": "x" * 3000}))
    [reply] = [reply async for reply in replies]
    assert (reply.kind, reply.body["error"]["code"]) == ("error", "payload_too_large")
    assert len(await bench.all(bench.options.dead)) == 1
    with pytest.raises(PayloadTooLarge):
        await submitter.submit(replace(ASKED, data={"prompt": "x" * 3000}), wait=True)


async def test_a_topic_that_is_missing_is_named(bench: Bench) -> None:
    """Where it is not to be made."""
    for connect in (bench.source, bench.submitter):
        with pytest.raises(SettingsError, match="nowhere"):
            await connect(results="nowhere", create=False)


async def test_topics_are_made_with_as_many_copies_as_there_are_brokers() -> None:
    """Three at most. The mock makes none when told to, so its part is played here; KAFKA_URL's makes those of all."""
    asked = []

    class Admin:
        code, controller = 0, 1

        async def describe_cluster(self) -> Any:
            return {"brokers": [{}, {}], "controller_id": self.controller}

        async def create_topics(self, topics: list[Any]) -> Any:
            asked.extend(topics)
            return SimpleNamespace(topic_errors=[(topic.name, self.code, None) for topic in topics])

    admin = Admin()
    await kafka_connection._create_topics(admin, {"a": {"retention.ms": "5"}})
    [topic] = asked
    assert (topic.name, topic.num_partitions, topic.replication_factor) == ("a", 16, 2)
    assert topic.topic_configs == {"retention.ms": "5"}
    admin.code = 36  # TOPIC_ALREADY_EXISTS: another worker was faster
    await kafka_connection._create_topics(admin, {"a": {}})
    admin.controller = -1  # one is being chosen
    with pytest.raises(BrokerUnavailable):
        await kafka_connection._create_topics(admin, {"a": {}})
    admin.controller = 1
    admin.code = 29  # TOPIC_AUTHORIZATION_FAILED
    with pytest.raises(SettingsError, match="'a'"):
        await kafka_connection._create_topics(admin, {"a": {}})


async def test_submit_gets_its_answer(bench: Bench) -> None:
    """Each of those who wait gets its own, also two with one id; an error as such, with the attempt it was."""
    source, submitter = await bench.source(), await bench.submitter()
    mine = [await submitter.submit(ASKED, wait=True) for _ in range(2)]
    other = await submitter.submit(replace(ASKED, id="2", data={"prompt": "b"}, stream=True), wait=True)
    processor = Processor(echo, None, Policy())
    done = 0
    while done < 3:
        done += await work(source, processor)
    for replies in mine:
        assert [reply async for reply in replies] == [Reply("result", {"answer": {"prompt": "a"}})]
    assert [reply async for reply in other] == [Reply("result", {"answer": {"prompt": "b"}})]
    failing = await submitter.submit(replace(ASKED, id="3"), wait=True)
    first = await one(source)
    await first.settle(first.envelope(), Retry(0.0, ERROR))
    second = await one(source)
    await second.settle(second.envelope(), Reject(ERROR))
    assert [reply async for reply in failing] == [Reply("error", ERROR.openai(), 0, 2)]
    assert submitter._waiting == {}


async def test_submit_without_waiting(bench: Bench) -> None:
    """The message is there, and nothing to wait for."""
    source, submitter = await bench.source(), await bench.submitter()
    assert [reply async for reply in await submitter.submit(replace(ASKED, deadline=4e9), wait=False)] == []
    found = (await one(source)).envelope()
    assert (found.id, found.operation, found.data, found.deadline) == ("1", "generate", {"prompt": "a"}, 4e9)


async def test_the_same_id_gets_the_same_answer(bench: Bench) -> None:
    """Sent twice, it is worked on once; whoever sent it again is answered from the record."""
    source, submitter = await bench.source(), await bench.submitter()

    async def once(envelope: Envelope, send_chunk: SendChunk | None = None) -> Mapping[str, Any]:
        return {"drawn": uuid4().hex}

    processor = Processor(once, MemoryRecords(), Policy())
    bodies = []
    for _ in range(2):
        replies = await submitter.submit(ASKED, wait=True)
        await eventually(lambda: work(source, processor))
        bodies += [reply.body async for reply in replies]
    assert len(bodies) == 2
    assert bodies[0] == bodies[1]


async def test_a_poison_message_holds_up_no_other(bench: Bench) -> None:
    """After its last attempt it is a dead letter; the others are answered meanwhile."""

    async def dispatch(envelope: Envelope, send_chunk: SendChunk | None = None) -> Mapping[str, Any]:
        if envelope.id == "poison":
            raise InternalError("again")
        return {}

    source = await bench.source()
    await bench.publish(headers={"Warmstart-Id": "poison"})
    for number in range(10):
        await bench.publish(headers={"Warmstart-Id": str(number)})
    processor = Processor(dispatch, None, Policy(max_deliveries=3, draw=lambda: 0.1))
    done = 0
    while done < 13:
        done += await work(source, processor)
    ids = [answer.key.decode() for answer in sorted(await bench.all(bench.options.results), key=lambda r: r.timestamp)]
    assert sorted(ids) == sorted([*map(str, range(10)), "poison"])
    [buried] = await bench.all(bench.options.dead)
    assert (told(buried)["Warmstart-Id"], told(buried)["Warmstart-Attempt"]) == ("poison", "3")


async def test_a_start_that_failed_is_begun_anew(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library mends a connection that it had, not one that it never made."""

    async def away(self: AIOKafkaConsumer) -> None:
        raise KafkaConnectionError("away")

    source = KafkaSource(bench.options)
    with monkeypatch.context() as patch:
        patch.setattr(AIOKafkaConsumer, "start", away)
        with pytest.raises(BrokerUnavailable):
            await source.open()
    await source.open()
    await bench.publish()
    assert (await one(source)).attempt == 1
    await source.close()


async def test_a_broker_that_goes_and_comes_back(
    bench: Bench, mock: MockKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fetching and settling say that it is away; what was being worked on is answered once it is back."""
    if KAFKA_URL:
        pytest.skip("a broker that others use is not to be stopped; unset KAFKA_URL")
    monkeypatch.setattr(kafka_connection, "SECONDS", 2.0)
    source = await bench.source()
    await bench.publish(headers={"Warmstart-Id": "1"})
    await bench.publish(headers={"Warmstart-Id": "2"})
    delivery, other = await one(source), await one(source)
    mock.down()

    async def away() -> bool:
        try:
            return bool(await source.fetch(1, 0.1))
        except BrokerUnavailable:
            return True

    assert await eventually(away)
    with pytest.raises(BrokerUnavailable):
        await delivery.settle(delivery.envelope(), Ack({}))
    with pytest.raises(BrokerUnavailable):
        await source.open()
    mock.up()

    async def back() -> bool:
        try:
            await source.open()
            await delivery.settle(delivery.envelope(), Ack({}))
        except BrokerUnavailable:
            return False
        return True

    assert await eventually(back, 30)
    await bench.publish(headers={"Warmstart-Id": "3"})
    for late in (other, await one(source)):
        await late.settle(late.envelope(), Ack({}))
    assert {answer.key for answer in await bench.all(bench.options.results)} == {b"1", b"2", b"3"}


async def test_work_goes_on_when_another_worker_comes(bench: Bench) -> None:
    """Of what the first has at hand it settles what is of partitions that stay its own; the rest is the other's."""
    first = await bench.source()
    for partition in range(4):
        await bench.publish(partition=partition, headers={"Warmstart-Id": str(partition)})
    at_hand: list[KafkaDelivery] = []
    while len(at_hand) < 4:
        at_hand += await first.fetch(4, 5.0)
    joining = asyncio.create_task(bench.source())
    while not joining.done():
        assert await first.fetch(4, 0.1) == []  # they are at hand already, however often they are read again
    second = await joining
    settled = set()
    for delivery in at_hand:
        try:
            await delivery.settle(delivery.envelope(), Ack({}))
            settled.add(delivery.envelope().id)
        except BrokerUnavailable:
            with pytest.raises(BrokerUnavailable):
                await delivery.extend()
    assert len(settled) == 2
    assert await first.fetch(4, 1.0) == []
    others: list[KafkaDelivery] = []
    while len(others) < 2:
        others += await second.fetch(4, 5.0)
    for delivery in others:
        await delivery.settle(delivery.envelope(), Ack({}))
    assert [delivery.envelope().id for delivery in others if delivery.envelope().id in settled] == []
    assert sorted(answer.key for answer in await bench.all(bench.options.results)) == [b"0", b"1", b"2", b"3"]


DIES = """
import asyncio, sys
from runtime.events.queues.kafka.source import KafkaSource
from runtime.events.queues.base import QueueOptions

async def main():
    source = KafkaSource(QueueOptions(*sys.argv[1:6], operation="generate", ack_seconds=float(sys.argv[6])))
    await source.open()
    while not await source.fetch(1, 1.0):
        pass
    print("taken", flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


async def test_another_worker_takes_over_from_one_that_was_killed(bench: Bench) -> None:
    """Once nothing was heard of it for ``ack_seconds``."""
    options = bench.options
    await bench.publish(headers={"Warmstart-Id": "1"})
    args = (options.url, options.stream, options.group, options.results, options.dead, str(options.ack_seconds))
    root = Path(kafka.__file__).parents[2]
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-c", DIES, *args, stdout=asyncio.subprocess.PIPE, cwd=root
    )
    assert worker.stdout
    async with asyncio.timeout(30):
        assert await worker.stdout.readline() == b"taken\n"
    worker.kill()
    await worker.wait()
    other = await bench.source()
    assert (await one(other)).envelope().id == "1"


async def test_two_workers_share_a_thousand_messages(bench: Bench) -> None:
    """Nobody stops or joins meanwhile, and each is answered once."""
    first = await bench.source()
    second = await bench.source()
    processor = Processor(echo, None, Policy())
    await asyncio.gather(
        *(bench.publish(partition=number % 4, headers={"Warmstart-Id": str(number)}) for number in range(1000))
    )
    done = 0
    while done < 1000:
        done += sum(await asyncio.gather(*(work(source, processor, 1.0, room=16) for source in (first, second))))
    answers = [answer.key.decode() for answer in await bench.all(bench.options.results)]
    assert sorted(answers, key=int) == [str(number) for number in range(1000)]
