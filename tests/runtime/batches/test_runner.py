"""runtime.batches.runner and job: a batch from its creation to its files, through errors, stops and restarts."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from runtime.batch_types import BatchState, StoredBatch, StoredFile
from runtime.batches.batches import BatchStore
from runtime.batches.database import BatchDatabase
from runtime.batches.files import FileStore
from runtime.batches.group_commit import GroupCommit
from runtime.batches.input_file import InputLimits
from runtime.batches.resources import BatchResources, RowAnswer
from runtime.batches.runner import BatchRunner
from runtime.batches.slots import Slots
from runtime.errors import DeadlineExceeded, InvalidRequest, ServiceError, StorageFull, TooManyRequests
from runtime.events.outcome import Policy
from runtime.telemetry.batch_metrics import BatchMetrics
from runtime.types import TokenUsage
from tests.support.batches import input_text
from tests.support.fakes import until
from tests.support.full_disk import mounted_disk


class Rows:
    """A handler of rows that answers with the row's own number, unless ``act`` does something else."""

    in_process = True

    def __init__(self, act: Callable[[int, int], Any] = lambda number, attempt: None) -> None:
        self.calls: list[int] = []
        self.running = 0
        self.most = 0
        self._act = act

    async def run(self, batch: StoredBatch, body: dict[str, Any], request_id: str) -> RowAnswer:
        """Answer a row."""
        number = body["n"]
        self.calls.append(number)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(0)
            if asyncio.iscoroutine(wanted := self._act(number, self.calls.count(number))):
                await wanted
            if isinstance(wanted, Exception):
                raise wanted
        finally:
            self.running -= 1
        return RowAnswer({"n": number}, request_id, TokenUsage(2, 3, 1))

    def render(self, batch: StoredBatch, error: ServiceError) -> Mapping[str, Any]:
        """Return an error's body."""
        return error.openai()

    async def close(self) -> None:
        """Nothing is to be released."""


class Site:
    """A folder with a runner, and the callers' view of it.

    Args:
        folder: the folder.
        rows: handles rows.
        slots: rows at once.
    """

    def __init__(self, folder: Path, rows: Rows, slots: int = 4) -> None:
        self.now = 1000.0
        self.database, own = BatchDatabase(folder), BatchDatabase(folder)
        self.files = self._files(self.database)
        self.batches = BatchStore(self.database, self.files, lambda: self.now)
        self.resources = BatchResources(
            *(own, self._files(own), rows, Slots(slots), GroupCommit(own)),
            Policy(max_deliveries=3, transient_seconds=0, failure_seconds=0),
            InputLimits(1000, 10_000, 8),
            BatchMetrics(CollectorRegistry()),
            lambda: self.now,
        )
        self.runner = BatchRunner(self.resources, poll_seconds=0.01)
        self.batches.on_change = self.runner.wake

    async def create(self, count: int, name: str = "1", window: int = 100, first: int = 0) -> StoredBatch:
        """Create a batch of rows with numbers from ``first`` on."""
        text = input_text([{"n": first + number} for number in range(count)], "/complete")
        return await self.create_from(text, name, window)

    async def create_from(self, text: str, name: str = "1", window: int = 100) -> StoredBatch:
        """Create a batch from an input file."""
        now = int(self.now)
        await self.files.add(StoredFile(f"file-{name}", "me", "in.jsonl", "batch", 0, now, now + 10**6), text)
        batch = StoredBatch(f"batch_{name}", "me", f"file-{name}", "/complete", "1h", now, now + window)
        return await self.batches.create(batch)

    async def get(self, name: str = "1") -> StoredBatch:
        """Return a batch."""
        return await self.batches.find("me", f"batch_{name}")

    async def ended(self, state: BatchState, name: str = "1") -> StoredBatch:
        """Wait until a batch has ended, and check how."""
        async with asyncio.timeout(20):
            while (batch := await self.get(name)).ended is None:  # noqa: ASYNC110 - the runner may be another process
                await asyncio.sleep(0.005)
        assert batch.state == state
        return batch

    async def lines(self, file_id: str | None) -> list[dict[str, Any]]:
        """Return the lines of an output file."""
        return [json.loads(line) for line in (await self.files.text("me", file_id or "")).splitlines()]

    def _files(self, database: BatchDatabase) -> FileStore:
        return FileStore(database, max_bytes=10**6, total_bytes=10**7, ttl_seconds=3600, clock=lambda: self.now)


@asynccontextmanager
async def working(folder: Path, rows: Rows, **options: Any) -> AsyncIterator[Site]:
    """Run batches inside the block."""
    site = Site(folder, rows, **options)
    site.runner.start()
    try:
        yield site
    finally:
        await site.runner.close()
        site.resources.database.close()
        site.database.close()


def _numbers(lines: list[dict[str, Any]]) -> list[int]:
    return [line["response"]["body"]["n"] for line in lines]


async def test_to_the_end(tmp_path: Path) -> None:
    """Every row runs once; answers and errors are in their files in the order of the input, and are counted."""
    rows = Rows(lambda number, attempt: InvalidRequest("no", param="p") if number % 10 == 3 else None)
    async with working(tmp_path, rows) as site:
        await site.create(50)
        batch = await site.ended("completed")
        good = [number for number in range(50) if number % 10 != 3]
        lines = await site.lines(batch.output_file)
        errors = await site.lines(batch.error_file)
        assert _numbers(lines) == good
        assert [line["custom_id"] for line in lines] == [f"row-{number}" for number in good]
        assert [line["custom_id"] for line in errors] == ["row-3", "row-13", "row-23", "row-33", "row-43"]
        assert lines[0].keys() == {"id", "custom_id", "response", "error"}
        assert (lines[0]["response"]["status_code"], lines[0]["error"]) == (200, None)
        assert lines[0]["response"]["request_id"]
        assert (errors[0]["response"]["status_code"], errors[0]["error"]) == (400, None)
        assert errors[0]["response"]["body"]["error"]["code"] == "invalid_request"
        assert (batch.total, batch.completed, batch.failed) == (50, 45, 5)
        assert (batch.tokens.input, batch.tokens.cached, batch.tokens.output) == (90, 45, 135)
        assert Counter(rows.calls) == Counter(range(50))
        assert rows.most == 4
        left = "SELECT count(*) + (SELECT count(*) FROM results) FROM rows"
        await until(lambda: site.database.read(lambda db: db.execute(left).fetchone()) == (0,))


async def test_a_wrong_input_file(tmp_path: Path) -> None:
    """No row runs, and the errors have their lines: of wrong rows, and of ids that come twice."""
    rows = Rows()
    async with working(tmp_path, rows) as site:
        good = input_text([{"n": 0}, {"n": 1}], "/complete")
        await site.create_from(good + "{\n" + good.splitlines()[0])
        batch = await site.ended("failed")
        found = [(error.line, error.code) for error in batch.errors]
        assert found == [(3, "invalid_json_line"), (4, "duplicate_custom_id")]
        await site.create_from("\n", "2")
        assert [error.code for error in (await site.ended("failed", "2")).errors] == ["empty_file"]
        await site.create_from("{\n" * 300, "3")
        assert len((await site.ended("failed", "3")).errors) == 100
    assert rows.calls == []


async def test_retries(tmp_path: Path) -> None:
    """A busy service is asked until it answers, a failure three times, and an unknown exception is one."""
    failures: dict[int, Callable[[int], Exception | None]] = {
        0: lambda attempt: TooManyRequests("full") if attempt < 10 else None,
        1: lambda attempt: DeadlineExceeded("slow"),
        2: lambda attempt: ValueError("planted") if attempt < 3 else None,
        3: lambda attempt: ValueError("planted"),
    }
    rows = Rows(lambda number, attempt: failures[number](attempt))
    async with working(tmp_path, rows) as site:
        await site.create(4)
        batch = await site.ended("completed")
        assert _numbers(await site.lines(batch.output_file)) == [0, 2]
        errors = [line["response"]["body"]["error"] for line in await site.lines(batch.error_file)]
        assert [error["code"] for error in errors] == ["deadline_exceeded", "internal_error"]
        assert "planted" not in str(errors)
    assert Counter(rows.calls) == {0: 10, 1: 3, 2: 3, 3: 3}


async def test_cancelled(tmp_path: Path) -> None:
    """Rows that run are stopped; what is done is in the output, and every other row is an error of its own."""
    rows = Rows(lambda number, attempt: asyncio.Event().wait() if number >= 6 else None)
    async with working(tmp_path, rows) as site:
        await site.create(20)
        await until(lambda: rows.running == 4)
        assert (await site.batches.cancel("me", "batch_1")).state in ("cancelling", "cancelled")
        batch = await site.ended("cancelled")
        assert rows.running == 0
        assert _numbers(await site.lines(batch.output_file)) == [*range(6)]
        errors = await site.lines(batch.error_file)
        assert [line["custom_id"] for line in errors] == [f"row-{number}" for number in range(6, 20)]
        assert {(line["response"], line["error"]["code"]) for line in errors} == {(None, "batch_cancelled")}
        assert batch.cancelling is not None
        assert (await site.batches.cancel("me", "batch_1")).state == "cancelled"


async def test_expired(tmp_path: Path) -> None:
    """At the end of the window the rows without a result are given up."""
    rows = Rows(lambda number, attempt: asyncio.Event().wait() if number >= 2 else None)
    async with working(tmp_path, rows) as site:
        await site.create(5)
        await until(lambda: rows.running == 3)
        site.now += 100
        batch = await site.ended("expired")
        assert _numbers(await site.lines(batch.output_file)) == [0, 1]
        assert [line["error"]["code"] for line in await site.lines(batch.error_file)] == ["batch_expired"] * 3
        with pytest.raises(InvalidRequest, match="expired"):
            await site.batches.cancel("me", "batch_1")


async def test_stopped_and_continued(tmp_path: Path) -> None:
    """After a stop the rows that have no result run, those that were interrupted too; the output has each one once."""
    first = Rows(lambda number, attempt: asyncio.Event().wait() if number >= 10 else None)
    async with working(tmp_path, first) as site:
        await site.create(30)
        await until(lambda: first.running == 4)
    second = Rows()
    async with working(tmp_path, second) as site:
        batch = await site.ended("completed")
        assert _numbers(await site.lines(batch.output_file)) == [*range(30)]
    assert sorted(first.calls) == [*range(14)]
    assert sorted(second.calls) == [*range(10, 30)]


async def test_draining(tmp_path: Path) -> None:
    """After ``stop`` the rows that run may end and are recorded, and no other begins."""
    gate = asyncio.Event()
    rows = Rows(lambda number, attempt: gate.wait())
    async with working(tmp_path, rows) as site:
        await site.create(30)
        await until(lambda: rows.running == 4)
        site.runner.stop()
        gate.set()
        await until(lambda: rows.running == 0)
    async with working(tmp_path, Rows()) as site:
        assert (await site.ended("completed")).completed == 30
    assert sorted(rows.calls) == [*range(4)]


async def test_one_runner_at_a_time(tmp_path: Path) -> None:
    """A second process runs nothing while the first one lives, and takes over after it."""
    first, second = Rows(), Rows()
    async with working(tmp_path, second) as other:
        pass
    async with working(tmp_path, first) as site:
        await site.create(3)
        await site.ended("completed")
        waiting = Site(tmp_path, second)
        waiting.runner.start()
        await site.create(3, "2")
        await site.ended("completed", "2")
        assert second.calls == []
    await waiting.create(3, "3")
    await waiting.ended("completed", "3")
    assert len(second.calls) == 3
    await waiting.runner.close()
    for database in (waiting.database, waiting.resources.database, other.database):
        database.close()


async def test_batches_take_turns(tmp_path: Path) -> None:
    """A small batch does not wait for the end of a large one."""
    gate = asyncio.Event()
    rows = Rows(lambda number, attempt: gate.wait())
    async with working(tmp_path, rows, slots=1) as site:
        await site.create(40)
        await until(lambda: rows.running)
        await site.create(3, "2", first=100)
        await asyncio.sleep(0.05)  # by now the second one waits for a slot
        gate.set()
        await site.ended("completed", "2")
        await site.ended("completed")
    assert max(rows.calls.index(number) for number in (100, 101, 102)) < 20


async def test_a_row_that_kills_the_process(tmp_path: Path) -> None:
    """A row during which the process died twice runs alone; one that killed it ten times is not run again."""
    gate = asyncio.Event()
    rows = Rows(lambda number, attempt: gate.wait() if number < 3 else None)
    async with working(tmp_path, rows) as site:
        await site.create(12)
        await until(lambda: rows.running == 3)
    site = Site(tmp_path, Rows())
    site.database.write(lambda db: db.execute("UPDATE rows SET starts = 2 WHERE line = 2"))
    site.database.write(lambda db: db.execute("UPDATE rows SET starts = 10 WHERE line = 3"))
    site.database.close()
    together: dict[int, int] = {}

    async def note(number: int) -> None:
        await asyncio.sleep(0)
        together[number] = rows.running

    rows = Rows(lambda number, attempt: note(number))
    async with working(tmp_path, rows) as site:
        batch = await site.ended("completed")
        (error,) = await site.lines(batch.error_file)
    assert together[1] == 1
    assert 2 not in together
    assert error["custom_id"] == "row-2"
    assert error["response"]["body"]["error"]["code"] == "delivery_limit"


class LongRows(Rows):
    """A handler of rows whose answers have 4 KiB."""

    async def run(self, batch: StoredBatch, body: dict[str, Any], request_id: str) -> RowAnswer:
        """Answer a row."""
        answer = await super().run(batch, body, request_id)
        return replace(answer, body={**answer.body, "text": "x" * 4096})


async def test_a_disk_without_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a disk that is really full, uploads are refused and results wait; with space again each row is there once."""
    monkeypatch.setattr("runtime.batches.database.full_jitter", lambda *args: 0.01)
    gate = asyncio.Event()
    rows = LongRows(lambda number, attempt: gate.wait() if number >= 10 else None)
    with mounted_disk(tmp_path / "disk", "4m") as disk:
        async with working(disk, rows, slots=300) as site:
            await site.create(300)
            while (await site.get()).completed < 10:  # noqa: ASYNC110 - the database tells
                await asyncio.sleep(0.005)
            filler = disk / "filler"
            with filler.open("wb", buffering=0) as file, suppress(OSError):
                while file.write(bytes(4096)):
                    pass
            gate.set()
            await until(lambda: not rows.running)
            await asyncio.sleep(0.05)
            assert (await site.get()).completed < 300
            with pytest.raises(StorageFull):
                await site.create_from("x" * 100_000, "2")
            assert (await site.get()).state == "in_progress"
            filler.unlink()
            batch = await site.ended("completed")
            assert _numbers(await site.lines(batch.output_file)) == [*range(300)]
        assert Counter(rows.calls) == Counter(range(300))


async def test_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch waits for space and ends as if nothing had been, its output whole and once."""
    publish, failures = FileStore.publish_output, [2]

    def fail(self: FileStore, path: Path, file_id: str) -> None:
        if failures[0]:
            failures[0] -= 1
            raise StorageFull("planted")
        publish(self, path, file_id)

    monkeypatch.setattr(FileStore, "publish_output", fail)
    monkeypatch.setattr("runtime.batches.database.full_jitter", lambda *args: 0.0)
    async with working(tmp_path, Rows()) as site:
        await site.create(5)
        batch = await site.ended("completed")
        assert _numbers(await site.lines(batch.output_file)) == [*range(5)]
        assert len(list((tmp_path / "files").iterdir())) == 2
        assert list((tmp_path / "staged").iterdir()) == []
