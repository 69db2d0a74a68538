"""The NATS submitter against a real server."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from nats.js.api import StreamConfig

from runtime.errors import InvalidRequest
from runtime.events.queues.base import BrokerUnavailable, QueueOptions, Reply
from tests.support.nats_server import real_nats
from tests.support.nats_work import envelope, opened, settle, settle_one, submit, submitting, work


async def test_a_sender_hears_chunks_then_the_answer(options: QueueOptions) -> None:
    """A submitter that streams hears every piece in order and then the answer."""
    async with opened(options) as source:
        prompt = " ".join(f"w{number}" for number in range(50))
        answer, _ = await asyncio.gather(submit(options, envelope("s", prompt, stream=True)), settle_one(source))
    assert [reply.chunk for reply in answer[:-1]] == list(range(50))
    assert [reply.body["word"] for reply in answer[:-1]] == prompt.split()
    assert answer[-1] == Reply("result", {"text": prompt.upper(), "by": "generate"})


async def test_an_answer_that_came_before_is_found(options: QueueOptions) -> None:
    """The same id, sent again after it was done, is answered with the same answer; nothing is done again."""
    async with opened(options) as source:
        first, _ = await asyncio.gather(submit(options, envelope("a", "hi")), settle_one(source))
        assert await submit(options, envelope("a", "hi")) == first
        assert await submit(options, envelope("a", "hi", stream=True)) == first
        assert await work(source) == 0


async def test_a_stream_that_takes_no_such_message_is_told_of(options: QueueOptions) -> None:
    """A submitter whose message no stream takes fails; it does not wait for an answer that never comes."""
    async with real_nats() as client:
        await client.jetstream().add_stream(StreamConfig(name=options.stream, subjects=[f"theirs-{options.stream}.*"]))
        async with submitting(options) as submitter:
            with pytest.raises(BrokerUnavailable, match=r"no responders|no NATS stream"):
                await submitter.submit(envelope("a", "hi"), wait=True)


async def test_an_answer_heard_of_but_not_stored_is_not_taken(options: QueueOptions) -> None:
    """What somebody sends past the stream, or the stream refused, is no answer: the stored one is."""
    async with opened(options) as source, submitting(options) as submitter, real_nats() as client:
        replies = await submitter.submit(envelope("a", "hi"), wait=True)
        answering = asyncio.create_task(anext(replies))
        (delivery,) = await source.fetch(1, 5)
        js = client.jetstream()
        with pytest.raises(Exception, match="expected stream"):
            await js.publish(
                f"{options.results}.a", b'{"forged": 1}', stream="OTHER", headers={"Warmstart-Kind": "result"}
            )
        await settle(delivery)
        assert (await answering).body == {"text": "HI", "by": "generate"}
        await replies.aclose()


async def test_the_same_error_as_any_way_in(options: QueueOptions) -> None:
    """A bad payload is answered with the OpenAI error, byte for byte what HTTP sends."""
    async with opened(options) as source:
        wrong = replace(envelope("wrong", ""), data={"prompt": 1})
        answer, _ = await asyncio.gather(submit(options, wrong), settle_one(source))
    assert answer == [Reply("error", InvalidRequest("prompt: a string", param="prompt").openai())]
