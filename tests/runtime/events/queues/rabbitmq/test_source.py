"""Against the real RabbitMQ, with queues of each test's own."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import aio_pika
import pytest
from aiormq.abc import DeliveredMessage
from pamqp import commands as spec
from pamqp.header import ContentHeader

from runtime.errors import InternalError, InvalidRequest, SettingsError
from runtime.events.envelope import Envelope
from runtime.events.idempotency.memory import MemoryRecords
from runtime.events.outcome import Ack, Policy, Reject, Retry
from runtime.events.processor import Processor, SendChunk
from runtime.events.queues.base import BrokerUnavailable, QueueOptions, Reply
from runtime.events.queues.factory import default_names, default_reply_prefixes, open_source, open_submitter
from runtime.events.queues.rabbitmq.connection import RETRY_DELAYS, delay_queue
from runtime.events.queues.rabbitmq.source import (
    NAMES,
    REPLY_PREFIXES,
    RabbitMQDelivery,
    RabbitMQSource,
    RabbitMQSubmitter,
)
from tests.attacks.fault_proxy import FaultProxy
from tests.support.queue_work import Opened, echo, eventually, one, work
from tests.support.rabbitmq_server import own_queues, own_rabbitmq, real_rabbitmq
from tests.support.soak import soak

BODY = b'{"prompt": "Hi"}'
ERROR = InternalError("it failed")


class Bench(Opened):
    """One test's queues, and a plain client beside the adapter."""

    def __init__(self, options: QueueOptions, channel: aio_pika.abc.AbstractChannel, stack: AsyncExitStack) -> None:
        super().__init__(options, RabbitMQSource, RabbitMQSubmitter, stack)
        self.channel = channel

    async def publish(self, body: bytes = BODY, **properties: Any) -> None:
        await self.channel.default_exchange.publish(
            aio_pika.Message(body, **{"message_id": "1", **properties}), self.options.stream
        )

    async def get(self, queue: str) -> aio_pika.abc.AbstractIncomingMessage:
        found = await self.channel.get_queue(queue, ensure=False)
        message = await eventually(lambda: found.get(no_ack=True, fail=False))
        return message

    async def count(self, queue: str) -> int:
        found = await self.channel.declare_queue(queue, passive=True)
        return found.declaration_result.message_count or 0

    async def waits_for(self, queue: str, messages: int) -> None:
        async def there() -> bool:
            return await self.count(queue) == messages

        await eventually(there)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with own_queues() as options, real_rabbitmq() as connection, AsyncExitStack() as stack:
        yield Bench(options, await connection.channel(), stack)


def test_sources_finds_the_adapter() -> None:
    """amqp:// and amqps:// are this adapter's."""
    options = QueueOptions("amqps://host", "a", "b", "c", "d")
    assert isinstance(open_source(options), RabbitMQSource)
    assert isinstance(open_submitter(options), RabbitMQSubmitter)
    assert default_names("amqp://host") == NAMES
    assert default_reply_prefixes("amqp://host") == REPLY_PREFIXES


@pytest.mark.parametrize("url", ["amqp://", "amqp://host:port", "amqp://[::1", "amqp:///vhost"])
def test_a_wrong_url_is_named(url: str) -> None:
    """The setting that holds it is."""
    with pytest.raises(SettingsError, match="EVENTS_URL"):
        RabbitMQSource(QueueOptions(url, "a", "b", "c", "d"))


async def test_a_message_is_read_and_answered(bench: Bench) -> None:
    """Id, payload, headers and reply address make the envelope; the answer has the id and the same correlation id."""
    source = await bench.source()
    headers = {"Warmstart-Operation": "chat", "traceparent": "00-1", "Warmstart-Deadline": 4e9, "x": [1], "y": None}
    await bench.publish(message_id="job-1", correlation_id="c-1", reply_to="warmstart.replies.me", headers=headers)
    delivery = await one(source)
    envelope = delivery.envelope()
    assert envelope == Envelope(
        "job-1",
        f"rabbitmq:{bench.options.stream}",
        "warmstart.chat",
        "chat",
        {"prompt": "Hi"},
        "00-1",
        1,
        4e9,
        "warmstart.replies.me",
    )
    await delivery.settle(envelope, Ack({"text": "Héllo"}))
    answer = await bench.get(bench.options.results)
    assert answer.body == b'{"text": "H\\u00e9llo"}'
    assert (answer.message_id, answer.correlation_id, answer.content_type) == ("job-1", "c-1", "application/json")
    assert answer.delivery_mode == aio_pika.DeliveryMode.PERSISTENT
    ours = {"Warmstart-Id": "job-1", "Warmstart-Kind": "result", "Warmstart-Attempt": "1"}
    assert answer.headers == ours | {"x-delivery-count": 0}
    assert await bench.count(bench.options.stream) == 0
    await source.close()
    assert await bench.count(bench.options.stream) == 0  # it was acknowledged


def bare(**properties: Any) -> RabbitMQDelivery:
    """A message as other libraries send it: the one of the tests gives each an id."""
    found = DeliveredMessage(
        delivery=spec.Basic.Deliver("tag", 1, False, "", "queue"),
        header=ContentHeader(properties=spec.Basic.Properties(**properties)),
        body=BODY,
        channel=None,  # type: ignore[arg-type]
    )
    source = RabbitMQSource(QueueOptions("amqp://host", "a", "b", "c", "d", operation="generate"))
    return RabbitMQDelivery(source, aio_pika.IncomingMessage(found))


def test_the_correlation_id_stands_in_for_an_id() -> None:
    """That is all that many clients of request and reply send. A header goes before both."""
    assert bare(correlation_id="c-1").envelope().id == "c-1"
    assert bare(correlation_id="c-1", message_id="m-1").envelope().id == "m-1"
    assert bare(message_id="m-1", headers={"warmstart-id": "h-1"}).envelope().id == "h-1"


def test_a_message_without_an_id_is_refused() -> None:
    """RabbitMQ gives it none, so that nobody could tell its second delivery from another message."""
    with pytest.raises(InvalidRequest, match="own field") as caught:
        bare().envelope()
    assert caught.value.param == "id"


async def test_what_cannot_be_read_is_answered_and_buried_too(bench: Bench) -> None:
    """With what its sender gave to know it by."""
    source = await bench.source()
    await bench.publish(b"[]", message_id="two words", correlation_id="c-1")
    delivery = await one(source)
    with pytest.raises(InvalidRequest, match="printable ASCII") as caught:
        delivery.envelope()
    await delivery.settle(None, Reject(caught.value))
    dead, answer = await bench.get(bench.options.dead), await bench.get(bench.options.results)
    assert (dead.body, dead.message_id) == (b"[]", "two words")
    assert (answer.correlation_id, answer.headers["Warmstart-Kind"]) == ("c-1", "error")


@pytest.mark.parametrize("reply_to", ["mine", "warmstart.requests", "amq.rabbitmq", "{results}", "{waits}"])
async def test_answers_go_only_where_they_may(bench: Bench, reply_to: str) -> None:
    """Not to any queue, and never to our own, whatever the prefixes allow."""
    ours = {"results": bench.options.results, "waits": delay_queue(bench.options.stream, 1)}
    source = await bench.source(reply_prefixes=(*REPLY_PREFIXES, "warmstart-test"))
    await bench.publish(reply_to=reply_to.format_map(ours))
    with pytest.raises(InvalidRequest, match="EVENTS_REPLY_PREFIXES"):
        (await one(source)).envelope()


async def test_it_takes_no_more_than_there_is_room_for(bench: Bench) -> None:
    """Not even into a buffer of the client: all others stay in the queue for other workers."""
    source, other = await bench.source(), await bench.source()
    for number in range(10):
        await bench.publish(message_id=str(number))
    await bench.waits_for(bench.options.stream, 10)
    first = await source.fetch(3, 1.0)
    assert 1 <= len(first) <= 3
    assert await bench.count(bench.options.stream) == 10 - len(first)
    assert await source.lag() == 10 - len(first)
    second = await source.fetch(2, 1.0)  # with the first still unsettled
    assert 1 <= len(second) <= 2
    rest: list[RabbitMQDelivery] = []
    while found := await other.fetch(10, 0.2):
        rest += found
    ids = [delivery.envelope().id for delivery in (*first, *second, *rest)]
    assert sorted(ids, key=int) == [str(number) for number in range(10)]


async def test_nothing_there_is_an_empty_fetch(bench: Bench) -> None:
    """And a message that comes while one waits ends the wait."""
    source = await bench.source()
    assert await source.fetch(5, 0.05) == []
    waiting_for = asyncio.create_task(source.fetch(5, 30.0))
    await bench.publish()
    async with asyncio.timeout(10):
        assert len(await waiting_for) == 1


async def test_a_cancelled_fetch_loses_nothing(bench: Bench) -> None:
    """What came with it is what the next one gives."""
    source = await bench.source()
    for _ in range(5):
        fetching = asyncio.create_task(source.fetch(1, 30.0))
        await asyncio.sleep(0)
        fetching.cancel()
        await asyncio.wait([fetching])
    await bench.publish()
    assert (await one(source)).envelope().id == "1"


async def test_another_worker_gets_what_one_leaves_behind(bench: Bench) -> None:
    """As its second delivery, once the connection of the first is gone."""
    gone, other = await bench.source(), await bench.source()
    await bench.publish()
    delivery = await one(gone)
    assert delivery.attempt == 1
    await gone.close()
    assert (await one(other)).envelope().attempt == 2
    with pytest.raises(BrokerUnavailable):
        await delivery.settle(delivery.envelope(), Ack({}))
    assert await bench.count(bench.options.results) == 0


async def test_a_retry_comes_again_after_a_while(bench: Bench) -> None:
    """Through the queue of the next longer wait, with all its properties, and the count goes on."""
    source = await bench.source()
    properties = {
        "headers": {"mine": "yes"},
        "reply_to": "warmstart.replies",
        "correlation_id": "c",
        "type": "t",
        "user_id": "guest",
    }
    await bench.publish(expiration=3600, **properties)
    first = await one(source)
    await first.settle(first.envelope(), Retry(0.2, ERROR))
    assert await bench.count(delay_queue(bench.options.stream, 1)) == 1
    second = await one(source)
    envelope = second.envelope()
    assert (envelope.id, envelope.attempt, envelope.reply_to) == ("1", 2, "warmstart.replies")
    assert second._message.headers["mine"] == "yes"
    assert (second._message.correlation_id, second._message.type) == ("c", "t")
    await second.settle(envelope, Retry(0.2, ERROR))
    third = await one(source)
    assert third.attempt == 3
    await third.settle(third.envelope(), Reject(ERROR))
    assert (await bench.get(bench.options.dead)).headers["Warmstart-Attempt"] == "3"


@pytest.mark.parametrize(("delay", "seconds"), [(0.01, 1), (1.0, 1), (1.1, 5), (16, 30), (1e6, 60)])
async def test_each_wait_has_its_queue(bench: Bench, delay: float, seconds: int) -> None:
    """So that none waits behind one that waits longer."""
    source = await bench.source()
    await bench.publish()
    delivery = await one(source)
    await delivery.settle(delivery.envelope(), Retry(delay, ERROR))
    queues = {wait: await bench.count(delay_queue(bench.options.stream, wait)) for wait in RETRY_DELAYS}
    assert queues == {wait: int(wait == seconds) for wait in RETRY_DELAYS}


async def test_what_is_given_back_comes_at_once(bench: Bench) -> None:
    """And counts as delivered."""
    source = await bench.source()
    await bench.publish()
    delivery = await one(source)
    await delivery.settle(delivery.envelope(), Retry(0.0, ERROR))
    assert (await one(source)).attempt == 2


async def test_a_rejected_message_is_answered_and_buried(bench: Bench) -> None:
    """Body and headers as they came, with the reason; put back among the work it begins anew."""
    source = await bench.source()
    await bench.publish(headers={"mine": "yes", "warmstart-attempt": "2"}, expiration=3600)
    delivery = await one(source)
    assert delivery.attempt == 3
    await delivery.settle(delivery.envelope(), Reject(InvalidRequest("prompt: no", param="prompt")))
    answer = await bench.get(bench.options.results)
    assert json.loads(answer.body)["error"]["param"] == "prompt"
    assert answer.headers["Warmstart-Kind"] == "error"
    dead = await bench.get(bench.options.dead)
    assert dead.body == BODY
    assert dead.expiration is None
    assert dead.headers == {
        "mine": "yes",
        "Warmstart-Id": "1",
        "Warmstart-Attempt": "3",
        "Warmstart-Reason": "invalid_request: prompt: no",
        "x-delivery-count": 0,
    }
    await bench.publish(dead.body, message_id=dead.message_id, headers=dead.headers)
    again = await one(source)
    assert again.attempt == 1
    await again.settle(again.envelope(), Retry(0.1, ERROR))
    assert (await one(source)).attempt == 2


@pytest.mark.parametrize("count", ["", "-3", "many", "1e3", "9" * 400])
async def test_a_senders_own_count_does_no_harm(bench: Bench, count: str) -> None:
    """What is no count is none."""
    source = await bench.source()
    await bench.publish(headers={"Warmstart-Attempt": count})
    assert (await one(source)).attempt == 1


async def test_a_classic_queue_will_do(bench: Bench) -> None:
    """It knows no count: its messages are new, or were delivered before."""
    await bench.channel.declare_queue(bench.options.stream, durable=True)
    gone, other = await bench.source(), await bench.source()
    await bench.publish()
    assert (await one(gone)).attempt == 1
    await gone.close()
    assert (await one(other)).attempt == 2


async def test_missing_queues_are_made_only_if_asked_for(bench: Bench) -> None:
    """Else the one that is missing is named; what one made is there for all."""
    with pytest.raises(SettingsError, match=bench.options.stream):
        await bench.source(create=False)
    with pytest.raises(SettingsError, match=bench.options.stream):
        await bench.submitter(create=False)
    await bench.source()
    await bench.source(create=False)
    await bench.submitter(create=False)


async def test_a_name_that_the_server_refuses_is_named(bench: Bench) -> None:
    """Trying again would be of no use."""
    with pytest.raises(SettingsError, match=r"amq\.mine"):
        await bench.source(stream="amq.mine")


async def test_no_password_is_told(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """Neither by the error nor in the log, also of the client library."""
    caplog.set_level(logging.DEBUG)
    place = urlsplit(bench.options.url)
    url = f"amqp://nobody:s3cret@{place.hostname}:{place.port}/"
    with pytest.raises(SettingsError, match="EVENTS_URL: RabbitMQ refuses the user or the password") as caught:
        await bench.source(url=url)
    assert "s3cret" not in f"{caught.value!r}{caplog.text}{RabbitMQSource(replace(bench.options, url=url)).name}"


async def test_a_virtual_host_that_is_not_there(bench: Bench) -> None:
    """The server closes the connection without a word that gets here; the message says what to look at."""
    place = urlsplit(bench.options.url)
    with pytest.raises(BrokerUnavailable, match="virtual host"):
        await bench.source(url=f"amqp://{place.username}:{place.password}@{place.hostname}:{place.port}/nowhere")


async def test_nobody_there(bench: Bench, unused_tcp_port: int) -> None:
    """Is a broker that is away."""
    with pytest.raises(BrokerUnavailable):
        await bench.source(url=f"amqp://127.0.0.1:{unused_tcp_port}")
    source = RabbitMQSource(bench.options)
    with pytest.raises(BrokerUnavailable):
        await source.fetch(1, 1.0)
    with pytest.raises(BrokerUnavailable):
        await source.lag()
    await source.close()


async def test_an_answer_that_arrives_nowhere_is_no_answer(bench: Bench) -> None:
    """The message is not let go; when the queue is back it is answered without another delivery."""
    source = await bench.source()
    await bench.publish()
    delivery = await one(source)
    await bench.channel.queue_delete(bench.options.results)
    with pytest.raises(BrokerUnavailable, match="NO_ROUTE"):
        await delivery.settle(delivery.envelope(), Ack({}))
    await (await bench.source()).close()  # it makes what is missing
    await delivery.settle(delivery.envelope(), Ack({}))
    assert await bench.count(bench.options.results) == 1
    await source.close()
    assert await bench.count(bench.options.stream) == 0


async def test_a_queue_that_takes_no_more_is_a_broker_away(bench: Bench) -> None:
    """A full one refuses the answer, and the message is kept."""
    arguments = {"x-max-length": 1, "x-overflow": "reject-publish"}
    await bench.channel.declare_queue(bench.options.results, durable=True, arguments=arguments)
    source = await bench.source()
    for number in range(5):
        await bench.publish(message_id=str(number))
    settled, kept = 0, []
    for _ in range(5):
        delivery = await one(source)
        try:
            await delivery.settle(delivery.envelope(), Ack({}))
            settled += 1
        except BrokerUnavailable:
            kept.append(delivery)
    assert kept
    assert await bench.count(bench.options.results) == settled
    await source.close()
    await bench.waits_for(bench.options.stream, len(kept))


async def test_a_reply_address_of_nobody_does_no_harm(bench: Bench) -> None:
    """The answer is in its queue all the same, and the worker goes on."""
    source = await bench.source()
    for reply_to in ("amq.rabbitmq.reply-to.garbage", "amq.gen-gone", "warmstart.replies." + "x" * 230, "amq.gen-1"):
        await bench.publish(message_id=reply_to[:40], reply_to=reply_to)
        delivery = await one(source)
        envelope = delivery.envelope()
        await delivery.settle(envelope, Ack({}))
        assert (await bench.get(bench.options.results)).message_id == envelope.id


async def test_submit_gets_chunks_in_order_and_then_the_answer(bench: Bench) -> None:
    """Twenty chunks, numbered; each of two who wait gets its own."""
    source, submitter = await bench.source(), await bench.submitter()
    processor = Processor(echo, None, Policy())
    envelope = Envelope("1", "test", "warmstart.generate", "generate", {"prompt": "a"}, stream=True)
    mine = await submitter.submit(envelope, wait=True)
    other = await submitter.submit(replace(envelope, id="2", data={"prompt": "b"}, stream=False), wait=True)
    assert await work(source, processor) == 2
    replies = [reply async for reply in mine]
    assert replies == [Reply("chunk", {"text": f"{number} "}, number, 1) for number in range(20)] + [
        Reply("result", {"answer": {"prompt": "a"}}, 0, 1)
    ]
    assert [reply async for reply in other] == [Reply("result", {"answer": {"prompt": "b"}})]
    assert await bench.count(bench.options.results) == 2


async def test_submit_gets_the_error_and_the_attempt_it_was(bench: Bench) -> None:
    """Also after a wait in another queue: the reply address goes with the message."""
    source, submitter = await bench.source(), await bench.submitter()
    replies = await submitter.submit(Envelope("1", "test", "warmstart.x", "x", {"prompt": "a"}), wait=True)
    first = await one(source)
    await first.settle(first.envelope(), Retry(0.1, ERROR))
    second = await one(source)
    await second.settle(second.envelope(), Reject(ERROR))
    assert [reply async for reply in replies] == [Reply("error", ERROR.openai(), 0, 2)]


async def test_submit_without_waiting(bench: Bench) -> None:
    """The message is there, asks for no reply, and there is nothing to wait for."""
    source, submitter = await bench.source(), await bench.submitter()
    envelope = Envelope("1", "test", "warmstart.x", "x", {"prompt": "a"}, deadline=4e9, stream=True)
    assert [reply async for reply in await submitter.submit(envelope, wait=False)] == []
    found = (await one(source)).envelope()
    assert (found.id, found.data, found.deadline, found.reply_to) == ("1", {"prompt": "a"}, 4e9, None)
    assert not found.stream


async def test_the_same_id_gets_the_same_answer(bench: Bench) -> None:
    """Sent twice, it is worked on once; whoever sent it again is answered from the record."""
    source, submitter = await bench.source(), await bench.submitter()
    called = 0

    async def count(envelope: Envelope, send_chunk: SendChunk | None = None) -> Mapping[str, Any]:
        nonlocal called
        called += 1
        return {"called": called}

    processor = Processor(count, MemoryRecords(), Policy())
    envelope = Envelope("1", "test", "warmstart.x", "x", {"prompt": "a"})
    for _ in range(3):
        replies = await submitter.submit(envelope, wait=True)
        assert await work(source, processor) == 1
        assert [reply.body async for reply in replies] == [{"called": 1}]


async def test_a_worker_that_dies_before_it_lets_go(bench: Bench) -> None:
    """The answer is there twice, with one id and the same bytes: whoever reads them keeps the first of each id."""
    records = MemoryRecords()

    async def once(envelope: Envelope, send_chunk: SendChunk | None = None) -> Mapping[str, Any]:
        return {"drawn": uuid4().hex}

    processor = Processor(once, records, Policy())
    dying, other = await bench.source(), await bench.source()
    await bench.publish()
    delivery = await one(dying)
    envelope = delivery.envelope()
    await delivery._send(envelope, await processor(envelope))
    await dying.close()
    assert await work(other, processor) == 1
    first, second = await bench.get(bench.options.results), await bench.get(bench.options.results)
    assert (first.message_id, first.body) == (second.message_id, second.body)


async def test_a_poison_message_holds_up_no_other(bench: Bench) -> None:
    """After its last attempt it is a dead letter; the others are answered meanwhile."""

    async def dispatch(envelope: Envelope, send_chunk: SendChunk | None = None) -> Mapping[str, Any]:
        if envelope.id == "poison":
            raise InternalError("again")
        return {}

    source = await bench.source()
    processor = Processor(dispatch, None, Policy(max_deliveries=3, draw=lambda: 0.1))
    await bench.publish(message_id="poison")
    for number in range(10):
        await bench.publish(message_id=str(number))
    answers = await bench.channel.get_queue(bench.options.results, ensure=False)
    ids = []
    async with asyncio.timeout(30):
        while len(ids) < 11:
            await work(source, processor)
            while message := await answers.get(no_ack=True, fail=False):
                ids.append(message.message_id)
    assert sorted(ids[:10]) == sorted(str(number) for number in range(10))
    assert ids[10] == "poison"
    dead = await bench.get(bench.options.dead)
    assert (dead.message_id, dead.headers["Warmstart-Attempt"]) == ("poison", "3")


@asynccontextmanager
async def proxied(options: QueueOptions) -> AsyncIterator[tuple[FaultProxy, str]]:
    place = urlsplit(options.url)
    async with FaultProxy(place.hostname or "", place.port or 5672) as proxy:
        yield proxy, f"amqp://{place.username}:{place.password}@127.0.0.1:{proxy.port}/"


async def test_a_cut_connection_loses_nothing(bench: Bench) -> None:
    """Fetching and settling say that the broker is away; after ``open`` all is delivered again and answered."""
    async with proxied(bench.options) as (proxy, url):
        source = await bench.source(url=url)
        for number in range(8):
            await bench.publish(message_id=str(number))
        deliveries = await source.fetch(8, 5.0)
        if len(deliveries) < 8:  # they came in two parts
            deliveries = [*deliveries, *await source.fetch(8 - len(deliveries), 5.0)]
        fetching = asyncio.create_task(source.fetch(8, 30.0))
        await asyncio.wait([fetching], timeout=0.05)
        proxy.cut()
        async with asyncio.timeout(10):
            with pytest.raises(BrokerUnavailable):
                await fetching
        for delivery in deliveries:
            with pytest.raises(BrokerUnavailable):
                await delivery.settle(delivery.envelope(), Ack({}))
            with pytest.raises(BrokerUnavailable):
                await delivery.extend()
        proxy.refuse = True
        with pytest.raises(BrokerUnavailable):
            await source.open()
        proxy.heal()
        await source.open()
        await bench.waits_for(bench.options.stream, 8)
        assert await work(source, Processor(echo, None, Policy())) == 8
        answers = [(await bench.get(bench.options.results)).message_id for _ in range(8)]
        assert sorted(answers) == [str(number) for number in range(8)]
        assert await bench.count(bench.options.stream) == 0


async def test_a_silent_network_gives_the_work_to_another(bench: Bench) -> None:
    """The server hears nothing for ``ack_seconds``; the worker finds out as well, and its late answer is refused."""
    async with proxied(bench.options) as (proxy, url):
        cut_off, other = await bench.source(url=url, ack_seconds=2.0), await bench.source()
        await bench.publish()
        delivery = await one(cut_off)
        proxy.up.stall_after = proxy.down.stall_after = 0
        second = await one(other)
        assert second.envelope().attempt == 2
        await second.settle(second.envelope(), Ack({}))
        with pytest.raises(BrokerUnavailable):
            await delivery.settle(delivery.envelope(), Ack({}))
        assert await bench.count(bench.options.results) == 1


async def test_who_waits_hears_that_the_connection_ended(bench: Bench) -> None:
    """With the same id it may ask again, and gets the answer."""
    async with proxied(bench.options) as (proxy, url):
        source, submitter = await bench.source(), await bench.submitter(url=url)
        envelope = Envelope("1", "test", "warmstart.x", "x", {"prompt": "a"})
        replies = await submitter.submit(envelope, wait=True)
        proxy.cut()
        async with asyncio.timeout(10):
            with pytest.raises(BrokerUnavailable):
                await anext(replies)
        with pytest.raises(BrokerUnavailable):
            await submitter.submit(envelope, wait=True)
        await submitter.open()
        replies = await submitter.submit(envelope, wait=True)
        assert await work(source, Processor(echo, None, Policy())) == 2
        assert (await anext(replies)).kind == "result"


async def test_two_workers_share_a_thousand_messages(bench: Bench) -> None:
    """Each is answered once."""
    sources = [await bench.source(), await bench.source()]
    processor = Processor(echo, None, Policy())
    await asyncio.gather(*(bench.publish(message_id=str(number)) for number in range(1000)))
    done = await asyncio.gather(*(work(source, processor, 1.0, room=16) for source in sources))
    assert sum(done) == 1000
    assert min(done) > 0
    answers = await bench.channel.get_queue(bench.options.results, ensure=False)
    ids = set()
    while message := await answers.get(no_ack=True, fail=False):
        assert message.message_id not in ids
        ids.add(message.message_id)
    assert len(ids) == 1000


@pytest.mark.slow
async def test_a_server_that_is_killed_loses_nothing(tmp_path: Path, unused_tcp_port_factory: Any) -> None:
    """In the middle of its messages: each is worked on once, and those answered twice have one answer."""
    ports = (unused_tcp_port_factory(), unused_tcp_port_factory())
    count, kills = soak(300, 120), [50, 120, 200][: soak(3, 1)]
    called: list[str] = []

    async def draw(envelope: Envelope, send_chunk: SendChunk | None = None) -> Mapping[str, Any]:
        called.append(envelope.id)
        await asyncio.sleep(0.005)
        return {"drawn": uuid4().hex}

    processor = Processor(draw, MemoryRecords(), Policy(draw=lambda: 0.1))
    with own_rabbitmq(tmp_path, ports) as node:
        options = QueueOptions(node.url, "work", "warmstart", "work.results", "work.dead", operation="generate")
        await node.answers()
        source = RabbitMQSource(options)
        await source.open()
        async with await aio_pika.connect(node.url) as connection:
            bench = Bench(options, await connection.channel(), AsyncExitStack())
            await asyncio.gather(*(bench.publish(message_id=str(number)) for number in range(count)))
        async with asyncio.timeout(180):
            while kills or not await settled(source, processor):
                if kills and len(called) >= kills[0]:
                    kills.pop(0)
                    node.kill()
                    node.start()
                elif kills:
                    await settled(source, processor, rounds=5)
        await source.close()
        answers: dict[str, set[bytes]] = {}
        async with await aio_pika.connect(node.url) as connection:
            queue = await (await connection.channel()).get_queue(options.results, ensure=False)
            while message := await queue.get(no_ack=True, fail=False):
                answers.setdefault(message.message_id or "", set()).add(message.body)
    assert sorted(answers, key=int) == sorted(called, key=int) == [str(number) for number in range(count)]
    assert {len(bodies) for bodies in answers.values()} == {1}


async def settled(source: RabbitMQSource, processor: Processor, rounds: int = 1000) -> bool:
    """Whether nothing is left to do; as much is done as the server lets one."""
    try:
        for _ in range(rounds):
            if not (deliveries := await source.fetch(4, 2.0)):
                waits = [
                    await source._channel.declare_queue(delay_queue(source.options.stream, seconds), passive=True)
                    for seconds in RETRY_DELAYS
                    if source._channel
                ]
                return not any(queue.declaration_result.message_count for queue in waits)
            for delivery in deliveries:
                await delivery.settle(delivery.envelope(), await processor(delivery.envelope()))
    except BrokerUnavailable:
        try:
            await source.open()
        except BrokerUnavailable:
            await asyncio.sleep(0.2)
    return False
