"""The NATS adapter against real servers: nothing lost, nothing answered twice, whatever breaks."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client

from runtime.errors import InvalidRequest, PayloadTooLarge, TooManyRequests
from runtime.events.envelope import encode
from runtime.events.outcome import Ack, Retry
from runtime.events.queues.base import BrokerUnavailable, QueueOptions
from runtime.events.queues.nats import connection as nats_connection
from runtime.events.queues.nats.source import NAMES, REPLY_PREFIXES
from tests.attacks.fault_proxy import FaultProxy
from tests.support.nats_server import NATS_URL, NatsServer, own_nats_server, own_streams, real_nats
from tests.support.nats_work import (
    answered,
    envelope,
    eventually,
    left,
    opened,
    publish,
    read_all,
    settle,
    settle_one,
    settled,
    submit,
    submitting,
    waiting,
    work,
)


async def test_a_plain_message_is_answered_once(options: QueueOptions) -> None:
    """A message with nothing but a body and a subject is worked on, answered under its place, and gone."""
    async with opened(options) as source:
        await publish(options, {"prompt": "hello"})
        (delivery,) = await source.fetch(4, 5)
        found = delivery.envelope()
        assert (found.id, found.source) == (f"{options.stream}:1", f"nats:{options.stream}")
        assert (found.operation, found.attempt, delivery.attempt) == ("generate", 1, 1)
        await settle(delivery)
    ((id, headers, body),) = await read_all(options, options.results)
    assert id == f"{options.stream}:1"
    assert body == encode({"text": "HELLO", "by": "generate"})
    assert headers["Warmstart-Kind"] == "result"
    assert headers["Warmstart-Attempt"] == "1"
    assert headers["Warmstart-Id"] == id
    assert headers["Warmstart-Operation"] == "generate"
    assert headers["Nats-Msg-Id"] == id
    assert await waiting(options) == 0


@pytest.mark.parametrize(
    ("headers", "name", "default", "operation", "id"),
    [
        ({}, "chat", "generate", "chat", None),
        ({"Warmstart_Operation": "complete"}, "chat", "generate", "complete", None),
        ({}, "jobs.42", "generate", "generate", None),
        ({"Nats_Msg_Id": "a"}, "chat", None, "chat", "a"),
        ({"Nats_Msg_Id": "a", "warmstart_id": "b"}, "chat", None, "chat", "b"),
    ],
)
async def test_operation_and_id_come_from_headers_then_the_message(
    options: QueueOptions, headers: dict[str, str], name: str, default: str | None, operation: str, id: str | None
) -> None:
    """The operation is a header's, the subject's or the worker's; the id our header's, NATS's own or the place's."""
    async with opened(replace(options, operation=default)) as source:
        await publish(options, {}, name=name, **headers)
        (delivery,) = await source.fetch(1, 5)
        found = delivery.envelope()
        assert (found.operation, found.id) == (operation, id or f"{options.stream}:1")
        await delivery.settle(found, Ack({}))


@pytest.mark.parametrize("id", ["a.b.*.>", "%2E", "x" * 256, ">" * 256])
async def test_odd_ids_are_answered(options: QueueOptions, id: str) -> None:
    """Ids that mean something in a subject, and the longest, find their answers."""
    async with opened(options) as source:
        answer, _ = await asyncio.gather(submit(options, envelope(id, "hi")), settle_one(source))
        assert [reply.kind for reply in answer] == ["result"]


async def test_retry_comes_again_after_its_delay(options: QueueOptions) -> None:
    """What is to be tried again is delivered again and counted; what is to be tried in an hour is not yet."""
    async with opened(options) as source:
        await publish(options, {"prompt": "hi"}, Warmstart_Id="later")
        await publish(options, {"prompt": "hi"}, Warmstart_Id="soon")
        later, soon = await source.fetch(2, 5)
        await later.settle(later.envelope(), Retry(3600, TooManyRequests("full")))
        await soon.settle(soon.envelope(), Retry(0.2, TooManyRequests("full")))
        (again,) = await source.fetch(2, 10)
        assert (again.envelope().id, again.attempt) == ("soon", 2)
        await again.settle(again.envelope(), Retry(0, TooManyRequests("full")))
        (third,) = await source.fetch(2, 10)
        assert (third.envelope().id, third.attempt) == ("soon", 3)
        await settle(third)
        assert await source.fetch(2, 0.3) == []
    assert len(await read_all(options, options.results)) == 1
    assert await waiting(options) == 1


async def test_many_waiting_for_another_try_do_not_hold_up_others(options: QueueOptions) -> None:
    """Two thousand messages that wait an hour for another try leave the way free for those behind."""
    async with opened(options) as source, submitting(options) as submitter:
        for number in range(2000):
            async for _ in await submitter.submit(envelope(f"n{number}", "x"), wait=False):
                raise AssertionError("nothing was asked for")
        for _ in range(2):
            for delivery in await source.fetch(1000, 5):
                await delivery.settle(None, Retry(3600, TooManyRequests("full")))
        await publish(options, {"prompt": "last"}, Warmstart_Id="last")
        assert await work(source) == 1
    assert [id for id, _, _ in await read_all(options, options.results)] == ["last"]


async def test_bad_bodies_are_answered_and_kept_as_dead_letters(options: QueueOptions) -> None:
    """What nobody can work on is answered with its error under the id it gave, copied with reason, and gone."""
    body = b"\xff\x00 no json"
    async with opened(options) as source:
        await publish(options, body, Warmstart_Id="bad", X_Theirs="kept", Nats_Msg_Id="other")
        assert await work(source) == 1
    ((id, headers, answer),) = await read_all(options, options.results)
    assert (id, headers["Warmstart-Kind"]) == ("bad", "error")
    assert json.loads(answer)["error"]["code"] == "invalid_request"
    ((id, headers, copy),) = await read_all(options, options.dead)
    assert (id, copy) == ("bad", body)
    assert headers["X-Theirs"] == "kept"
    assert headers["Warmstart-Reason"].startswith("invalid_request: ")
    assert headers["Warmstart-Attempt"] == "1"
    assert await waiting(options) == 0


async def test_poison_ends_as_a_dead_letter_and_blocks_nobody(options: QueueOptions) -> None:
    """What fails every time is answered with an error after the limit, once; all others are answered meanwhile."""
    async with opened(options) as source:
        await publish(options, {"prompt": "poison"}, Warmstart_Id="poison")
        for number in range(20):
            await publish(options, {"prompt": f"p{number}"}, Warmstart_Id=f"p{number}")
        await work(source)
    found = {id: headers["Warmstart-Kind"] for id, headers, _ in await read_all(options, options.results)}
    assert found == {"poison": "error"} | {f"p{number}": "result" for number in range(20)}
    ((id, headers, body),) = await read_all(options, options.dead)
    assert (id, headers["Warmstart-Attempt"], json.loads(body)) == ("poison", "3", {"prompt": "poison"})
    assert headers["Warmstart-Reason"] == "engine_restarting: the engine died"
    assert headers["Warmstart-Operation"] == "generate"


async def test_headers_for_the_server_are_not_passed_on(options: QueueOptions) -> None:
    """What a sender asked of the server for its own message is not asked for again with the dead letter."""
    async with opened(options) as source:
        await publish(options, b"bad", Nats_Rollup_X="all", Nats_Expected_Last_Subject_Sequence="0")
        await work(source)
    ((_, headers, _),) = await read_all(options, options.dead)
    assert {name for name in headers if name.startswith("Nats-")} == {"Nats-Msg-Id", "Nats-Expected-Stream"}


@pytest.mark.parametrize(
    "reply_to",
    [
        "orders.new",
        "$JS.API.STREAM.DELETE.X",
        "warmstart",
        "warmstart.>",
        "warmstart.a*",
        "warmstart..a",
        "RESULTS",
    ],
)
async def test_answers_go_nowhere_they_may_not(options: QueueOptions, reply_to: str) -> None:
    """A message that wants its answer outside the allowed subjects, or among others' answers, is rejected."""
    allowed = replace(options, reply_prefixes=(*options.reply_prefixes, "test-"))
    async with opened(allowed) as source:
        where = f"{options.results}.other" if reply_to == "RESULTS" else reply_to
        await publish(options, {"prompt": "hi"}, Warmstart_Reply_To=where, Warmstart_Id="me")
        (delivery,) = await source.fetch(1, 5)
        with pytest.raises(InvalidRequest) as caught:
            delivery.envelope()
        assert caught.value.param == "reply_to"
        await settle(delivery)
    ((id, headers, _),) = await read_all(options, options.results)
    assert (id, headers["Warmstart-Kind"]) == ("me", "error")


async def test_chunks_and_the_answer_go_to_reply_to(options: QueueOptions) -> None:
    """Who names a subject hears each piece with its number and attempt there, then the answer, which is stored too."""
    async with opened(options) as source, real_nats() as client:
        inbox = await client.subscribe("warmstart.test." + options.stream)
        await publish(
            options, {"prompt": "one two"}, Warmstart_Id="s", Warmstart_Stream="true", Warmstart_Reply_To=inbox.subject
        )
        await work(source)
        received = [await inbox.next_msg(5) for _ in range(3)]
    kinds = [(m.headers or {})["Warmstart-Kind"] for m in received]
    assert kinds == ["chunk", "chunk", "result"]
    assert [(m.headers or {}).get("Warmstart-Chunk") for m in received] == ["0", "1", None]
    assert {(m.headers or {})["Warmstart-Attempt"] for m in received} == {"1"}
    assert [json.loads(m.data) for m in received[:2]] == [{"word": "one"}, {"word": "two"}]
    ((_, _, body),) = await read_all(options, options.results)
    assert body == received[2].data


async def test_duplicates_are_answered_once(options: QueueOptions) -> None:
    """The same id ten times, beyond what the server itself recognizes as a duplicate, gets one answer."""
    async with opened(options) as first, opened(options) as second:
        for number in range(10):
            await publish(options, {"prompt": "same"}, Warmstart_Id="same", Nats_Msg_Id=f"m{number}")
        done = await asyncio.gather(work(first), work(second))
    assert sum(done) == 10
    assert len(await read_all(options, options.results)) == 1
    assert await waiting(options) == 0


async def test_two_workers_share_the_work(options: QueueOptions) -> None:
    """Five hundred messages through two workers: each is answered, none twice."""
    async with submitting(options) as submitter:
        for number in range(500):
            await (await submitter.submit(envelope(f"n{number}", "x"), wait=False)).aclose()
        async with opened(options) as first, opened(options) as second:
            assert await first.lag() == 500
            done = await asyncio.gather(work(first), work(second))
            assert await first.lag() == 0
    assert sum(done) == 500
    assert min(done) > 0
    assert Counter(id for id, _, _ in await read_all(options, options.results)) == {f"n{n}": 1 for n in range(500)}


async def test_no_more_comes_than_there_is_room_for(options: QueueOptions) -> None:
    """A fetch gives what waits, up to its limit, without waiting for more."""
    async with opened(options) as source, submitting(options) as submitter:
        for number in range(5):
            await (await submitter.submit(envelope(f"n{number}", "x"), wait=False)).aclose()
        assert len(await source.fetch(3, 60)) == 3
        assert len(await source.fetch(3, 60)) == 2
        assert await source.fetch(3, 0.05) == []


async def test_a_fetch_that_nobody_waits_for_gives_back_what_comes(options: QueueOptions) -> None:
    """A message that reaches a worker after it stopped fetching goes to another at once, not after the ack wait."""
    async with opened(options) as leaving, opened(options) as staying:
        for number in range(20):
            fetching = asyncio.create_task(leaving.fetch(4, 60))
            await asyncio.sleep(0.002 * (number % 5))  # anywhere in the life of the request
            fetching.cancel()
            await publish(options, {"prompt": "hi"}, Warmstart_Id=f"n{number}")
            with pytest.raises(asyncio.CancelledError):
                await fetching
            found = await staying.fetch(1, 10)  # well under ack_seconds
            assert [delivery.envelope().id for delivery in found] == [f"n{number}"]
            await settle(found[0])
    assert await waiting(options) == 0


async def test_a_forgotten_pull_is_repeated(options: QueueOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pull request that the server never answers costs half a second, and neither a message nor the connection."""
    publish_message, forgotten = Client.publish, list[str]()

    async def forget_first(self: Client, subject: str, *args: Any, **named: Any) -> None:
        if ".MSG.NEXT." in subject and not forgotten:
            forgotten.append(subject)
            return
        await publish_message(self, subject, *args, **named)

    monkeypatch.setattr(Client, "publish", forget_first)
    async with opened(options) as source:
        client = await source.connection.client()
        await publish(options, {"prompt": "hi"}, Warmstart_Id="a")
        (delivery,) = await source.fetch(1, 0.05)
        assert (delivery.envelope().id, delivery.attempt, len(forgotten)) == ("a", 1, 1)
        assert await source.connection.client() is client
        await settle(delivery)


async def test_a_stopped_worker_loses_its_work_to_another() -> None:
    """A worker that is cut off in the middle and never heard of again: another takes over after the ack wait."""
    # Not a multiple of a pull's second: NATS before 2.9.16 counts no attempt if the ack wait ends as a pull expires.
    async with own_streams(ack_seconds=1.5) as options, opened(options) as stopped, opened(options) as other:
        await publish(options, {"prompt": "hi"}, Warmstart_Id="a")
        (lost,) = await stopped.fetch(1, 5)
        (taken,) = await other.fetch(1, 10)
        assert (taken.envelope().id, taken.attempt) == ("a", 2)
        await taken.settle(taken.envelope(), Ack({"by": "other"}))
        await lost.settle(lost.envelope(), Ack({"by": "stopped"}))  # it was not dead after all
        ((_, headers, body),) = await read_all(options, options.results)
    assert (json.loads(body), headers["Warmstart-Attempt"]) == ({"by": "other"}, "2")


async def test_extended_work_stays_with_its_worker() -> None:
    """Who says again and again that it is at it keeps its message beyond the ack wait."""
    async with own_streams(ack_seconds=2.0) as options, opened(options) as source:
        await publish(options, {"prompt": "hi"})
        (delivery,) = await source.fetch(1, 5)
        for _ in range(7):
            await delivery.extend()
            assert await source.fetch(1, 0.4) == []
        await settle(delivery)
    assert delivery.attempt == 1


async def test_a_restarted_server_loses_nothing(server: NatsServer) -> None:
    """The server is killed and started again, three times, while two workers are at it: each is answered once."""

    async def done() -> bool:
        return await left(options) == 0

    async def so_far() -> bool:
        return await answered(options) >= enough

    async with own_streams(server.url, ack_seconds=2.0) as options:
        async with submitting(options) as submitter:
            for number in range(300):
                await (await submitter.submit(envelope(f"n{number}", "x"), wait=False)).aclose()
        async with opened(options) as first, opened(options) as second:
            working = [asyncio.create_task(work(source, done)) for source in (first, second)]
            for enough in (20, 100, 200):  # noqa: B007 - so_far reads it
                await eventually(so_far)
                server.kill()
                server.start()
            async with asyncio.timeout(60):
                await asyncio.gather(*working)
        assert Counter(id for id, _, _ in await read_all(options, options.results)) == {f"n{n}": 1 for n in range(300)}


async def test_a_cut_network_hands_the_work_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker behind a network that carries nothing for longer than the ack wait: another answers, and it alone."""
    monkeypatch.setattr(nats_connection, "REQUEST_SECONDS", 1.5)
    host, _, port = NATS_URL.rpartition("/")[2].rpartition(":")
    async with own_streams(ack_seconds=1.0) as options, FaultProxy(host, int(port)) as proxy:
        far = replace(options, url=f"nats://127.0.0.1:{proxy.port}")
        async with opened(far) as cut, opened(options) as other:
            await publish(options, {"prompt": "hi"}, Warmstart_Id="a")
            (lost,) = await cut.fetch(1, 5)
            proxy.up.stall_after = proxy.down.stall_after = 0
            with pytest.raises(BrokerUnavailable):
                await lost.settle(lost.envelope(), Ack({"by": "cut"}))
            (taken,) = await other.fetch(1, 10)
            proxy.heal()  # what it sent arrives now, late
            await taken.settle(taken.envelope(), Ack({"by": "other"}))
            await eventually(lambda: settled(lost))
            stored = await read_all(options, options.results)
            assert len(stored) == 1
            assert await waiting(options) == 0


async def test_a_deleted_consumer_is_made_again_on_opening(options: QueueOptions) -> None:
    """Somebody deletes the consumer: the worker says that the broker is away, and opening makes it anew."""
    async with opened(options) as source, real_nats() as client:
        await client.jetstream().delete_consumer(options.stream, options.group)
        with pytest.raises(BrokerUnavailable):
            await source.fetch(1, 0.05)
        await source.open()
        await publish(options, {"prompt": "hi"})
        assert await work(source) == 1


async def test_messages_too_large_are_refused_with_the_limit(tmp_path: Path) -> None:
    """Too large a message, answer or dead letter says so, names the limit, and never goes round for ever."""
    with own_nats_server(tmp_path, "max_payload: 8192") as server:
        async with own_streams(server.url) as options, opened(options) as source, submitting(options) as submitter:
            with pytest.raises(
                PayloadTooLarge, match=r"9\d{3} bytes; the NATS server accepts at most 7\d{3} \(max_payload\)"
            ):
                await submitter.submit(envelope("big", "x" * 9000), wait=False)
            await publish(options, {"prompt": "hi"}, Warmstart_Id="a")
            (delivery,) = await source.fetch(1, 5)
            await delivery.settle(delivery.envelope(), Ack({"text": "x" * 9000}))
            await publish(options, b"x" * 8192)  # bad, and as large as it goes
            await work(source)
            answers = {id: json.loads(body) for id, _, body in await read_all(options, options.results)}
            assert answers["a"]["error"]["code"] == "payload_too_large"
            assert "max_payload" in answers["a"]["error"]["message"]
            dead = {id: body for id, _, body in await read_all(options, options.dead)}
            assert json.loads(dead["a"]) == {"prompt": "hi"}
            assert 7000 < len(dead[f"{options.stream}:2"]) < 8192
            assert await waiting(options) == 0


def test_nobody_may_have_answers_sent_into_a_stream_of_ours() -> None:
    """The names and the reply addresses that are the custom do not meet."""
    assert not any(f"{name}.".startswith(REPLY_PREFIXES) for name in NAMES)
