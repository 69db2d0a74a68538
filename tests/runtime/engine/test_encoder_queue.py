"""runtime.engine.encoder_queue: which texts make up a step."""

from __future__ import annotations

import asyncio

import pytest

from runtime.encoder_types import EncoderInput
from runtime.engine.encoder_queue import EncodeRequest, EncoderQueue


@pytest.fixture
def loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


def request(loop: asyncio.AbstractEventLoop, *lengths: int, background: bool = False) -> EncodeRequest:
    return EncodeRequest([EncoderInput((1,) * n) for n in lengths], background, loop, loop.create_future())


def test_requests_take_turns(loop: asyncio.AbstractEventLoop) -> None:
    """A request with many texts does not hold up one that came after it with a single text."""
    queue = EncoderQueue()
    many, single = request(loop, 4, 4, 4, 4), request(loop, 4)
    queue.add(many, background=many.background)
    queue.add(single, background=single.background)
    assert queue.take(8) == [(many, 0), (single, 0)]
    assert queue.take(8) == [(many, 1), (many, 2)]
    assert queue.take(8) == [(many, 3)]
    assert queue.take(8) == []


def test_a_step_keeps_its_budget(loop: asyncio.AbstractEventLoop) -> None:
    """Texts fill a step up to its budget with what each costs beside; a longer text has its own step."""
    queue = EncoderQueue()
    texts = request(loop, 3, 3, 20, 3)
    queue.add(texts, background=texts.background)
    assert queue.take(8, cost=1) == [(texts, 0), (texts, 1)]
    assert queue.take(8, cost=1) == [(texts, 2)]
    assert queue.take(8, cost=1) == [(texts, 3)]


def test_interactive_texts_go_first_and_background_ones_do_not_starve(loop: asyncio.AbstractEventLoop) -> None:
    """Background texts fill what interactive ones leave, and begin a step after sixteen without any."""
    queue = EncoderQueue()
    batch, asked = request(loop, *[4] * 3, background=True), request(loop, *[4] * 40)
    queue.add(batch, background=batch.background)
    queue.add(asked, background=asked.background)
    steps = [queue.take(4) for _ in range(18)]
    assert [step[0][0] is batch for step in steps] == [False] * 16 + [True, False]
    assert len(queue.take(400)) == 23 + 2  # the interactive rest, then the background rest


def test_texts_of_removed_requests_are_in_no_step(loop: asyncio.AbstractEventLoop) -> None:
    """A request that is removed after some of its texts were taken leaves the queue, and the others stay."""
    queue = EncoderQueue()
    gone, stays = request(loop, 4, 4), request(loop, 4, background=True)
    queue.add(gone, background=False)
    queue.add(stays, background=True)
    assert queue.take(4) == [(gone, 0)]
    queue.remove({gone})
    assert queue.take(100) == [(stays, 0)]
