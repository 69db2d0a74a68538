"""One delivery, from its envelope to its outcome: records, deadlines, leases, and whatever may go wrong with them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest

from runtime.errors import EngineRestarting, InvalidRequest, TooManyRequests
from runtime.events import processor as process_module
from runtime.events.envelope import Envelope
from runtime.events.idempotency.memory import MemoryRecords
from runtime.events.idempotency.records import (
    Done,
    InProgress,
    Mismatch,
    Records,
    RecordsUnavailable,
    Started,
    fingerprint,
    key,
)
from runtime.events.outcome import Ack, Outcome, Policy, Reject, Retry
from runtime.events.processor import Processor, SendChunk
from tests.support.fakes import until

POLICY = Policy(max_deliveries=3, draw=lambda: 0.5)
NOW = 1_700_000_000.0
Found = Started | Done | InProgress | Mismatch


def envelope(**changes: Any) -> Envelope:
    """Some work."""
    fields: dict[str, Any] = {"id": "1", "source": "s", "type": "warmstart.say", "operation": "say", "data": {"a": 1}}
    return Envelope(**fields | changes)


class Operation:
    """Answers, raises, or waits, as it is told."""

    def __init__(self, answer: Mapping[str, Any] | Exception | None = None) -> None:
        self.answer = answer
        self.calls: list[tuple[Envelope, SendChunk | None]] = []
        self.cancelled = False
        self.go = asyncio.Event()

    async def __call__(self, envelope: Envelope, send_chunk: SendChunk | None = None) -> Mapping[str, Any]:
        self.calls.append((envelope, send_chunk))
        if self.answer is None:
            try:
                await self.go.wait()
            except asyncio.CancelledError:
                self.cancelled = True
                raise
            return {"late": True}
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class FakeRecords:
    """Says what it is told, and notes what it is asked.

    Args:
        found: what ``begin`` finds.
        away: the calls that fail.
        renewed: whether a renewal finds the record still the holder's.
        completed: likewise.
    """

    def __init__(
        self, found: Found | None = None, *, away: tuple[str, ...] = (), renewed: bool = True, completed: bool = True
    ) -> None:
        self.found = found or Started()
        self.away = away
        self.renewed = renewed
        self.completed = completed
        self.calls: list[str] = []
        self.holders: set[str] = set()
        self.kept: tuple[bytes, float] | None = None

    def _called(self, name: str, holder: str) -> None:
        self.calls.append(name)
        self.holders.add(holder)
        if name in self.away:
            raise RecordsUnavailable("the store is away")

    async def begin(self, key: str, fingerprint: str, holder: str, seconds: float) -> Found:
        self._called("begin", holder)
        return self.found

    async def renew(self, key: str, holder: str, seconds: float) -> bool:
        self._called("renew", holder)
        return self.renewed

    async def complete(self, key: str, holder: str, result: bytes, seconds: float) -> bool:
        self._called("complete", holder)
        self.kept = result, seconds
        return self.completed

    async def release(self, key: str, holder: str) -> None:
        self._called("release", holder)

    async def close(self) -> None:
        pass


def processor(operation: Operation, records: Records | None = None, **options: Any) -> Processor:
    """With a clock that stands still."""
    settings: dict[str, Any] = {"lease_seconds": 30.0, "result_seconds": 60.0, "clock": lambda: NOW} | options
    return Processor(operation, records, POLICY, **settings)


def code(outcome: Outcome) -> str:
    """The error's."""
    assert isinstance(outcome, Retry | Reject)
    return outcome.error.code


async def test_an_answer_is_recorded() -> None:
    """It is kept for as long as was asked, byte for byte as it goes out."""
    records = FakeRecords()
    assert await processor(Operation({"b": [1.5]}), records)(envelope()) == Ack({"b": [1.5]})
    assert records.calls == ["begin", "complete"]
    assert len(records.holders) == 1
    assert records.kept == (b'{"b": [1.5]}', 60.0)


async def test_without_records_it_is_done_every_time() -> None:
    """Then nothing tells that it was done before."""
    operation = Operation({})
    work = processor(operation)
    assert [await work(envelope()), await work(envelope())] == [Ack({}), Ack({})]
    assert len(operation.calls) == 2


async def test_every_delivery_is_another_holder() -> None:
    """So that one that comes back from the dead cannot be taken for the one that has the work now."""
    records = FakeRecords()
    work = processor(Operation({}), records)
    await work(envelope())
    await work(envelope())
    assert len(records.holders) == 2


async def test_what_is_done_is_answered_from_its_record() -> None:
    """Also after its deadline: the work was done in time, and that is what the sender is told by whoever asks again."""
    operation, records = Operation({}), FakeRecords(Done(b'{"kept": 1}'))
    assert await processor(operation, records)(envelope(deadline=NOW - 5)) == Ack({"kept": 1}, repeated=True)
    assert operation.calls == []
    assert records.calls == ["begin"]


async def test_what_another_does_is_tried_again() -> None:
    """Soon, for that one may be done long before its lease ends; and not before that, if it ends sooner."""
    for left, least in ((30.0, process_module._MAX_CONFLICT_SECONDS), (0.25, 0.25)):
        operation, records = Operation({}), FakeRecords(InProgress(left))
        outcome = await processor(operation, records)(envelope())
        assert outcome == Retry(least + 0.5, outcome.error)  # type: ignore[union-attr]
        assert code(outcome) == "idempotency_conflict"
        assert operation.calls == []
        assert records.calls == ["begin"]


async def test_the_same_id_with_another_payload_is_refused() -> None:
    """It is no repetition, and must not get the other's answer."""
    operation, records = Operation({}), FakeRecords(Mismatch())
    outcome = await processor(operation, records)(envelope())
    assert isinstance(outcome, Reject)
    assert code(outcome) == "idempotency_mismatch"
    assert operation.calls == []
    assert records.calls == ["begin"]


@pytest.mark.parametrize(("lapsed", "done"), [(0, True), (2, True), (3, False), (7, False)])
async def test_what_brought_its_workers_down(lapsed: int, done: bool) -> None:
    """As often as a fault may happen somebody takes it up again; then it is dead, and its record stays as it is."""
    operation, records = Operation({}), FakeRecords(Started(lapsed))
    outcome = await processor(operation, records)(envelope())
    if done:
        assert outcome == Ack({})
    else:
        assert isinstance(outcome, Reject)
        assert code(outcome) == "delivery_limit"
        assert operation.calls == []
        assert records.calls == ["begin"]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (InvalidRequest("no"), ("reject", "invalid_request")),
        (TooManyRequests("full", retry_after=2), ("retry", "queue_full")),
        (EngineRestarting("gone"), ("retry", "engine_restarting")),
        (RuntimeError("a secret"), ("retry", "internal_error")),
        (TimeoutError("not ours"), ("retry", "internal_error")),
    ],
)
async def test_an_error_gives_the_work_back(error: Exception, expected: tuple[str, str]) -> None:
    """Whatever went wrong, the next delivery begins as if nothing had happened; a bug's text is for the log."""
    records = FakeRecords()
    outcome = await processor(Operation(error), records)(envelope(deadline=NOW + 100))
    assert (type(outcome).__name__.lower(), code(outcome)) == expected
    assert "secret" not in outcome.error.message  # type: ignore[union-attr]
    assert records.calls == ["begin", "release"]


async def test_a_bug_is_dead_in_the_end() -> None:
    """After the deliveries that the policy allows, and not before."""
    work = processor(Operation(RuntimeError("bug")), FakeRecords())
    kinds = [type(await work(envelope(attempt=attempt))) for attempt in (1, 2, 3, 4)]
    assert kinds == [Retry, Retry, Reject, Reject]


async def test_a_deadline_that_has_passed() -> None:
    """Nothing is done, and the record is given back."""
    operation, records = Operation({}), FakeRecords()
    outcome = await processor(operation, records)(envelope(deadline=NOW))
    assert isinstance(outcome, Reject)
    assert code(outcome) == "deadline_passed"
    assert operation.calls == []
    assert records.calls == ["begin", "release"]
    assert code(await processor(operation)(envelope(deadline=NOW - 1))) == "deadline_passed"


async def test_a_deadline_that_passes_meanwhile() -> None:
    """The work is cut off, which frees the engine."""
    operation, records = Operation(), FakeRecords()
    outcome = await processor(operation, records)(envelope(deadline=NOW + 0.01))
    assert isinstance(outcome, Reject)
    assert (code(outcome), operation.cancelled) == ("deadline_passed", True)
    assert records.calls == ["begin", "release"]


async def test_records_away_at_the_beginning() -> None:
    """Nothing is done; what may have been begun all the same is given back."""
    operation, records = Operation({}), FakeRecords(away=("begin", "release"))
    outcome = await processor(operation, records)(envelope())
    assert isinstance(outcome, Retry)
    assert code(outcome) == "idempotency_unavailable"
    assert operation.calls == []
    assert records.calls == ["begin", "release"]


async def test_records_away_at_the_end() -> None:
    """The answer is there, and goes out."""
    records = FakeRecords(away=("complete",))
    assert await processor(Operation({"a": 1}), records)(envelope()) == Ack({"a": 1})
    assert records.calls == ["begin", "complete"]


async def test_records_away_when_work_is_given_back() -> None:
    """The outcome is the error's."""
    records = FakeRecords(away=("release",))
    assert code(await processor(Operation(InvalidRequest("no")), records)(envelope())) == "invalid_request"


async def test_records_away_between() -> None:
    """Beats go on, of the record and of the delivery, each for itself; the work is not disturbed."""
    extended = 0

    async def extend() -> None:
        nonlocal extended
        extended += 1
        if extended % 2:
            raise ConnectionError("away")

    operation, records = Operation(), FakeRecords(away=("renew",))
    work = processor(operation, records, lease_seconds=0.01)
    task = asyncio.create_task(_outcome(work(envelope(), extend=extend)))
    await until(lambda: extended >= 4 and records.calls.count("renew") >= 4)
    operation.go.set()
    assert await task == Ack({"late": True})


async def _outcome(outcome: Awaitable[Outcome]) -> Outcome:
    return await outcome


@pytest.mark.parametrize("records", [None, FakeRecords()])
async def test_beats_end_with_the_work(records: FakeRecords | None) -> None:
    """While it lasts the delivery is extended, three times in a lease; afterwards it is not."""
    extended = 0

    async def extend() -> None:
        nonlocal extended
        extended += 1

    operation = Operation()
    work = processor(operation, records, lease_seconds=0.03)
    task = asyncio.create_task(_outcome(work(envelope(), extend=extend)))
    await until(lambda: extended >= 3)
    operation.go.set()
    await task
    others = asyncio.all_tasks() - {asyncio.current_task()}
    assert not others


async def test_a_lost_lease_ends_the_work() -> None:
    """Another has it: what this one would answer is of no use, and the engine is needed elsewhere."""
    operation, records = Operation(), FakeRecords(renewed=False)
    outcome = await processor(operation, records, lease_seconds=0.01)(envelope(deadline=NOW + 100))
    assert isinstance(outcome, Retry)
    assert (code(outcome), operation.cancelled) == ("idempotency_conflict", True)


async def test_a_lease_lost_at_the_end() -> None:
    """An answer that could not be recorded because another works on it now is not sent."""
    records = FakeRecords(completed=False)
    outcome = await processor(Operation({}), records)(envelope())
    assert isinstance(outcome, Retry)
    assert code(outcome) == "idempotency_conflict"
    assert records.calls == ["begin", "complete"]


async def test_cancellation_gives_the_work_back() -> None:
    """Who takes it up next begins anew, and nobody counts it as lapsed."""
    operation, records = Operation(), MemoryRecords()
    task = asyncio.create_task(_outcome(processor(operation, records)(envelope())))
    await until(lambda: operation.calls)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert operation.cancelled
    work = envelope()
    assert await records.begin(key(work), fingerprint(work.operation, work.data), "another", 1) == Started(lapsed=0)


@pytest.mark.parametrize("step", ["begin", "complete", "release"])
async def test_cancellation_at_any_step_gives_the_work_back(step: str) -> None:
    """Wherever the worker is just then."""

    class Slow(FakeRecords):
        async def _wait(self, name: str) -> None:
            if name == step:
                waiting.set()
                await asyncio.sleep(0.01)

        async def begin(self, *args: Any) -> Found:
            await self._wait("begin")
            return await super().begin(*args)

        async def complete(self, *args: Any) -> bool:
            await self._wait("complete")
            return await super().complete(*args)

        async def release(self, *args: Any) -> None:
            await self._wait("release")
            await super().release(*args)

    waiting = asyncio.Event()
    records = Slow()
    operation = Operation(InvalidRequest("no") if step == "release" else {})
    task = asyncio.create_task(_outcome(processor(operation, records)(envelope())))
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: "release" in records.calls)


@pytest.mark.parametrize("wanted", [True, False])
async def test_chunks_only_where_they_are_wanted(wanted: bool) -> None:
    """The envelope says so."""

    async def send(number: int, chunk: Mapping[str, Any]) -> None:
        pass

    operation = Operation({})
    await processor(operation)(envelope(stream=wanted), send_chunk=send)
    assert operation.calls[0][1] is (send if wanted else None)


async def test_a_crash_after_the_work_computes_nothing_again() -> None:
    """With real records: the second delivery gets the first one's answer, byte for byte."""
    records = MemoryRecords()
    first, second = Operation({"text": "é\u2028", "n": 0.1}), Operation({"other": 1})
    one = await processor(first, records)(envelope())
    two = await processor(second, records)(envelope(attempt=2))
    assert isinstance(one, Ack)
    assert two == Ack(one.result, repeated=True)
    assert second.calls == []


async def test_the_order_of_members_does_not_count() -> None:
    """The same payload written in another way is the same; another one is not."""
    records = MemoryRecords()
    work: Callable[..., Awaitable[Outcome]] = processor(Operation({}), records)
    assert await work(envelope(data={"a": 1, "b": 2})) == Ack({})
    assert await work(envelope(data={"b": 2, "a": 1})) == Ack({}, repeated=True)
    assert code(await work(envelope(data={"a": 1, "b": 3}))) == "idempotency_mismatch"
    assert code(await work(envelope(data={"a": 1, "b": 2}, operation="other"))) == "idempotency_mismatch"
    assert await work(envelope(data={"a": 1, "b": 3}, source="another")) == Ack({})
