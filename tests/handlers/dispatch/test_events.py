"""handlers.dispatch.events: from an envelope to an operation, with or without its pieces on the way."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

import handlers.dispatch.events
from handlers.dispatch.events import Dispatcher
from handlers.local import invoke, invoke_stream
from handlers.operations import OPERATIONS
from runtime.errors import InsufficientScope, InvalidRequest, NotFound, ServiceError, SettingsError
from runtime.events.envelope import Envelope
from runtime.types import Message
from tests.e2e.test_same_answer import PAYLOADS, WRONG, context
from tests.support.fakes import FakeEngine, fake_context, until

STREAMING = [name for name, operation in OPERATIONS.items() if operation.stream and not operation.admin]


def envelope(operation: str, data: dict[str, Any]) -> Envelope:
    return Envelope("1", "test", f"warmstart.{operation}", operation, data)


@dataclass
class Chunks:
    """Takes chunks as a broker would.

    Args:
        fail_at: the number of the chunk at which it fails.
        hold: waits for this before each.
    """

    fail_at: int | None = None
    hold: asyncio.Event | None = None
    taken: list[Mapping[str, Any]] = field(default_factory=list)
    calls: int = 0

    async def __call__(self, number: int, chunk: Mapping[str, Any]) -> None:
        self.calls += 1
        assert number == len(self.taken), "chunks are numbered from 0, and come in order"
        if self.hold is not None:
            await self.hold.wait()
        if number == self.fail_at:
            raise OSError("planted")
        self.taken.append(chunk)


@pytest.mark.parametrize("operation", [name for name, found in OPERATIONS.items() if not found.admin])
async def test_the_answer_is_the_operations_own(operation: str) -> None:
    """Without chunks, an event gets what a call in the process gets; a field ``stream`` changes nothing."""
    for payload in PAYLOADS[operation]:
        called = await invoke(operation, payload, ctx=context())
        assert await Dispatcher(context())(envelope(operation, payload)) == called
    for wrong in (WRONG[operation], {"unknown": 1}):
        with pytest.raises(ServiceError) as ours:
            await Dispatcher(context())(envelope(operation, wrong))
        with pytest.raises(ServiceError) as theirs:
            await invoke(operation, wrong, ctx=context())
        assert ours.value.openai() == theirs.value.openai()


@pytest.mark.parametrize("asked", [None, True, False])
@pytest.mark.parametrize("operation", STREAMING)
async def test_chunks_and_the_whole_answer(operation: str, asked: bool | None) -> None:
    """The chunks are those of the operation's own stream, byte for byte, with the usage only where it was asked for;
    the answer has it always.
    """
    for payload in PAYLOADS[operation]:
        if asked is not None:
            if operation not in ("chat", "completions"):
                continue
            payload = payload | {"stream_options": {"include_usage": asked}}
        payload = payload | ({"stream": True} if operation != "compare" else {})
        chunks = Chunks()
        answer = await Dispatcher(context())(envelope(operation, payload), chunks)
        assert json.dumps(answer) == json.dumps(await invoke(operation, payload, ctx=context()))
        streamed = [chunk async for chunk in invoke_stream(operation, payload, ctx=context())]
        assert json.dumps(chunks.taken) == json.dumps(streamed)


async def test_an_operation_without_pieces() -> None:
    """Whoever asks it for chunks gets none, and the answer."""
    chunks = Chunks()
    assert (await Dispatcher(context())(envelope("health", {}), chunks))["status"] == "ok"
    assert chunks.taken == []


@pytest.mark.parametrize("operation", STREAMING)
async def test_the_same_errors_with_chunks(operation: str) -> None:
    """A wrong payload is the error that it is without, and nothing is sent."""
    for wrong in (WRONG[operation], {"stream_options": {"include_usage": "perhaps"}}, {"stream_options": 3}):
        chunks = Chunks()
        if operation == "compare" and wrong is WRONG["compare"]:
            continue  # whose variants fail one by one, inside the answer
        with pytest.raises(ServiceError) as ours:
            await Dispatcher(context())(envelope(operation, wrong), chunks)
        with pytest.raises(ServiceError) as theirs:
            await invoke(operation, wrong, ctx=context())
        assert ours.value.openai() == theirs.value.openai()
        assert not chunks.taken


async def test_chunks_that_cannot_be_sent(caplog: pytest.LogCaptureFixture) -> None:
    """The first failure is logged and is the last try; the answer comes all the same."""
    chunks = Chunks(fail_at=1)
    with caplog.at_level(logging.WARNING, "warmstart.events"):
        answer = await Dispatcher(context())(envelope("complete", {"prompt": "x"}), chunks)
    assert answer["text"] == "Hello there."
    assert (len(chunks.taken), chunks.calls) == (1, 2)
    assert [record.getMessage() for record in caplog.records] == ["chunks are not sent any more: planted"]


async def test_a_broker_that_hangs(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The work does not wait for it: the engine is free while the first chunk still hangs, and soon the answer goes."""
    monkeypatch.setattr(handlers.dispatch.events, "_GRACE_SECONDS", 0.2)
    engine, chunks = FakeEngine(), Chunks(hold=asyncio.Event())
    task = asyncio.create_task(Dispatcher(fake_context(engine))(envelope("complete", {"prompt": "x"}), chunks))
    await until(lambda: chunks.calls)
    await until(lambda: engine.jobs and not engine.open_streams)
    assert not task.done()
    with caplog.at_level(logging.WARNING, "warmstart.events"):
        assert (await task)["text"] == "Hello there."
    assert (chunks.calls, chunks.taken) == (1, [])
    assert "too slow" in caplog.text
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_broker_that_is_slower_than_the_work() -> None:
    """Chunks that wait when the work is done are sent before the answer."""
    engine, chunks = FakeEngine(), Chunks(hold=asyncio.Event())
    task = asyncio.create_task(Dispatcher(fake_context(engine))(envelope("complete", {"prompt": "x"}), chunks))
    await until(lambda: engine.jobs and not engine.open_streams)
    assert chunks.hold is not None
    chunks.hold.set()
    assert (await task)["text"] == "Hello there."
    assert [chunk.get("text") for chunk in chunks.taken] == ["Hello", " there", ".", None]


async def test_cancelled() -> None:
    """Whoever gives the work up frees the engine, and nothing is sent any more."""
    engine, chunks = FakeEngine(words=("x",) * 10_000, pause=0.001), Chunks()
    data = {"prompt": "x", "max_new_tokens": 10_000}
    task = asyncio.create_task(Dispatcher(fake_context(engine))(envelope("complete", data), chunks))
    await until(lambda: len(chunks.taken) > 3)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert engine.open_streams == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_work_that_fails_on_its_way() -> None:
    """It is the operation's error; what had been sent before stays sent."""
    engine, chunks = FakeEngine(fail_after=2, pause=0.001, failure=NotFound("planted")), Chunks()
    with pytest.raises(NotFound, match="planted"):
        await Dispatcher(fake_context(engine))(envelope("complete", {"prompt": "x"}), chunks)
    assert engine.open_streams == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}


class Told(FakeEngine):
    """Remembers of what kind the texts were that it was given to read."""

    def __init__(self) -> None:
        super().__init__(token_length=2)
        self.kinds = set[bool]()

    async def encode(self, text: str, *, background: bool = False) -> tuple[int, ...]:
        self.kinds.add(background)
        return await super().encode(text)

    async def encode_chat(
        self, messages: Sequence[Message], *, background: bool = False, **options: Any
    ) -> tuple[int, ...]:
        self.kinds.add(background)
        return (1, 2)

    async def encode_plain(self, text: str, *, background: bool = False) -> tuple[int, ...]:
        self.kinds.add(background)
        return (1, 2)


async def test_everything_is_background_work() -> None:
    """Whatever events ask of the engine goes behind what people wait for, scores and comparisons too; and it is
    refused where the queue of such work is full, and not where that of others is.
    """
    compared = {"prompt": "x", "variants": [{"seed": 1}, {"temperature": 0}]}
    echoed = {"prompt": "x", "echo": True, "logprobs": 1, "max_tokens": 3}
    for operation, data in [*((name, PAYLOADS[name][0]) for name in STREAMING), ("compare", compared)]:
        data = echoed if operation == "completions" else data
        for background, chunks in ((True, None), (True, Chunks()), (False, None)):
            engine = Told()
            ctx = fake_context(engine)
            if background:
                await Dispatcher(ctx)(envelope(operation, data), chunks)
            else:
                await invoke(operation, data, ctx=ctx)
            assert {job.background for jobs in engine.jobs for job in jobs} == engine.kinds == {background}


async def test_which_operations() -> None:
    """All that are no admin's, or those that the settings name; anything else is refused before it is looked at."""
    with pytest.raises(NotFound, match="generate"):
        await Dispatcher(context())(envelope("nope", {}))
    with pytest.raises(InsufficientScope, match="EVENTS_OPERATIONS") as caught:
        await Dispatcher(context())(envelope("unload_model", {"model": "fake"}))
    assert caught.value.param == "operation"
    some = Dispatcher(context(), ("complete", "load_model"))
    assert (await some(envelope("load_model", {"model": "fake"}), Chunks()))["id"] == "fake"
    with pytest.raises(InsufficientScope):
        await some(envelope("generate", {"prompt": 3}))
    with pytest.raises(SettingsError, match="EVENTS_OPERATIONS: no operation 'nope'"):
        Dispatcher(context(), ("complete", "nope"))
    with pytest.raises(InvalidRequest):
        await some(envelope("complete", {}))
