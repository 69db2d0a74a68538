"""runtime.events.idempotency.sqlite: clocks that are set, and files that are damaged, locked, full or shared."""

from __future__ import annotations

import asyncio
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from runtime.events.idempotency.records import Done, InProgress, RecordsUnavailable, Started
from runtime.events.idempotency.sqlite import Moment, SqliteRecords, moment
from tests.support.damage import damages
from tests.support.full_disk import full_disk

DAY = 86_400.0
UNIX = 1_700_000_000.0


class Machine:
    """A machine's clocks. The wall clock can be set; the other goes on, until the next boot."""

    def __init__(self) -> None:
        self.boot, self.seconds, self.wall = "first", 1000.0, UNIX

    def __call__(self) -> Moment:
        return Moment(self.boot, self.seconds, self.wall)

    def advance(self, seconds: float) -> None:
        self.seconds += seconds
        self.wall += seconds

    def reboot(self, wall: float) -> None:
        self.boot, self.seconds, self.wall = self.boot + "'", 20.0, wall


@pytest.fixture
def machine() -> Machine:
    return Machine()


def _file(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "events.sqlite"


@pytest.fixture
async def records(tmp_path: Path, machine: Machine) -> AsyncIterator[SqliteRecords]:
    opened = SqliteRecords(_file(tmp_path), machine)
    yield opened
    await opened.close()


@pytest.mark.parametrize("hours", [-30, -5, 5, 30])
async def test_the_wall_clock_is_set(records: SqliteRecords, machine: Machine, hours: float) -> None:
    """While the machine runs that changes nothing: leases and results last as long as they were to last."""
    await records.begin("done", "f", "a", 10)
    await records.complete("done", "a", b"r", DAY)
    await records.begin("running", "f", "a", 10)
    machine.wall += hours * 3600
    assert await records.begin("done", "f", "b", 10) == Done(b"r")
    assert await records.begin("running", "f", "b", 10) == InProgress(10)
    machine.advance(10)
    assert await records.begin("running", "f", "b", 10) == Started(1)
    assert not await records.complete("running", "a", b"late", DAY)
    machine.advance(DAY - 11)
    assert await records.begin("done", "f", "b", 10) == Done(b"r")
    machine.advance(1)
    assert await records.begin("done", "f", "b", 10) == Started(0)


async def test_a_reboot(records: SqliteRecords, machine: Machine) -> None:
    """After one the wall clock tells how much time has passed."""
    await records.begin("done", "f", "a", 10)
    await records.complete("done", "a", b"r", DAY)
    await records.begin("running", "f", "a", 1000)
    machine.reboot(UNIX + 500)
    assert await records.begin("running", "f", "b", 10) == InProgress(500)
    assert await records.begin("done", "f", "b", 10) == Done(b"r")
    machine.advance(600)
    assert await records.begin("running", "f", "b", 10) == Started(1)
    machine.reboot(UNIX + DAY)
    assert await records.begin("done", "f", "b", 10) == Started(0)


async def test_a_reboot_with_a_wrong_clock(records: SqliteRecords, machine: Machine) -> None:
    """Where that says that time went back, it goes on from the last that was known: nothing is shut out for ever."""
    await records.begin("done", "f", "a", 10)
    await records.complete("done", "a", b"r", DAY)
    machine.advance(100)
    await records.begin("running", "f", "a", 10)
    machine.reboot(0)
    assert await records.begin("running", "f", "b", 10) == InProgress(10)
    machine.advance(10)
    assert await records.begin("running", "f", "b", 10) == Started(1)
    machine.wall = UNIX  # and now it is set
    machine.advance(DAY - 111)
    assert await records.begin("done", "f", "b", 10) == Done(b"r")
    machine.advance(1)
    assert await records.begin("done", "f", "b", 10) == Started(0)


def test_this_machine() -> None:
    """Names its boot; its seconds go on and do not depend on the wall clock."""
    first, second = moment(), moment()
    assert first.boot == second.boot == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert first.seconds <= second.seconds
    assert abs(first.wall - time.time()) < 60


async def test_time_clears_up(tmp_path: Path, machine: Machine) -> None:
    """What has had its time goes as other work is begun, more than comes; the file is used again and does not grow."""
    records = SqliteRecords(_file(tmp_path), machine)

    async def fill(number: int) -> None:
        for each in range(150):
            await records.begin(f"{number} {each}", "f", "a", 10)
            await records.complete(f"{number} {each}", "a", bytes(2000), 100)
        machine.advance(100)

    await fill(0)
    await fill(1)
    size = _file(tmp_path).stat().st_size
    for number in range(2, 5):
        await fill(number)
    await records.begin("one", "f", "a", 10)
    await records.begin("more", "f", "a", 10)
    await records.close()
    assert _file(tmp_path).stat().st_size <= size
    with sqlite3.connect(_file(tmp_path)) as database:
        assert database.execute("SELECT count(*) FROM records").fetchone() == (2,)
    database.close()


@pytest.mark.parametrize("damage", damages("clock"))
async def test_damaged(
    tmp_path: Path, machine: Machine, damage: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    """A file that is damaged, or is none of ours, is begun anew and works from then on; the log says so, once."""
    records = SqliteRecords(_file(tmp_path), machine)
    for number in range(50):
        await records.begin(str(number), "f", "a", 10)
        await records.complete(str(number), "a", bytes(1000), DAY)
    await records.close()
    damage(_file(tmp_path))
    records = SqliteRecords(_file(tmp_path), machine)
    assert await records.begin("7", "f", "b", 10) == Started(0)
    assert await records.complete("7", "b", b"r", DAY)
    assert await records.begin("7", "f", "c", 10) == Done(b"r")
    await records.close()
    assert [one.getMessage()[:41] for one in caplog.records] == ["events.sqlite is damaged and is created again: "[:41]]


async def test_removed_while_open(tmp_path: Path, machine: Machine) -> None:
    """Two that have a file open, which somebody removes, take up the same new one."""
    first, second = SqliteRecords(_file(tmp_path), machine), SqliteRecords(_file(tmp_path), machine)
    await first.begin("k", "f", "a", 10)
    assert await second.begin("k", "f", "b", 10) == InProgress(10)
    for path in _file(tmp_path).parent.iterdir():
        path.unlink()
    assert await first.begin("k", "f", "c", 10) == Started(0)
    assert await second.begin("k", "f", "d", 10) == InProgress(10)
    await first.close()
    await second.close()


async def test_private(records: SqliteRecords, tmp_path: Path) -> None:
    """Only the owner may read what was answered."""
    await records.begin("k", "f", "a", 10)
    assert {path.stat().st_mode & 0o777 for path in _file(tmp_path).parent.iterdir()} == {0o600}


async def test_full_disk(records: SqliteRecords, tmp_path: Path) -> None:
    """What has no room on the disk fails and leaves what was; it goes on once there is room."""
    await records.begin("k", "f", "a", 10)
    largest = max(path.stat().st_size for path in _file(tmp_path).parent.iterdir())
    with full_disk(largest), pytest.raises(RecordsUnavailable, match=r"events\.sqlite"):
        await records.complete("k", "a", bytes(10**6), DAY)
    assert await records.begin("k", "f", "b", 10) == InProgress(10)
    assert await records.complete("k", "a", bytes(10**6), DAY)


async def test_no_place_for_a_file(records: SqliteRecords, tmp_path: Path) -> None:
    """A folder that cannot be made is a failure with the reason; it works once it can."""
    (tmp_path / "cache").write_text("in the way")
    for call in (records.begin("k", "f", "a", 10), records.renew("k", "a", 10), records.release("k", "a")):
        with pytest.raises(RecordsUnavailable, match=r"events\.sqlite"):
            await call
    (tmp_path / "cache").unlink()
    assert await records.begin("k", "f", "a", 10) == Started(0)


async def test_locked(tmp_path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where another holds the file for longer than is waited, that is a failure, and over when it is over."""
    monkeypatch.setattr("runtime.events.idempotency.sqlite._BUSY_SECONDS", 0.02)
    records = SqliteRecords(_file(tmp_path), machine)
    await records.begin("k", "f", "a", 10)
    other = sqlite3.connect(_file(tmp_path), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(RecordsUnavailable, match="locked"):
        await records.complete("k", "a", b"r", DAY)
    other.execute("ROLLBACK")
    other.close()
    assert await records.complete("k", "a", b"r", DAY)
    await records.close()


WORKER = """
import asyncio, sys
from pathlib import Path
from runtime.events.idempotency.records import Done, Started
from runtime.events.idempotency.sqlite import SqliteRecords

async def main(path, name, count):
    records = SqliteRecords(Path(path))
    for number in range(int(count)):
        holder = f"{name} {number}"
        found = await records.begin(str(number), "f", holder, 3600)
        if isinstance(found, Started):
            print("begun", number, found.lapsed, flush=True)
            done = await records.complete(str(number), holder, f"{holder} ".encode() * 2000, 86400)
            print("done", number, done, flush=True)
        elif isinstance(found, Done):
            assert found.result == found.result[:len(found.result) // 2000] * 2000
    await records.close()

asyncio.run(main(*sys.argv[1:]))
"""


def _worker(path: Path, name: str, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORKER, str(path), name, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


async def test_processes_share_a_file(tmp_path: Path) -> None:
    """Three that begin a new file together and race through the same work do each piece once."""
    workers = [_worker(_file(tmp_path), f"worker {number}", 300) for number in range(3)]
    said = [(await asyncio.to_thread(worker.communicate))[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0]
    lines = [line for one in said for line in one.splitlines()]
    assert sorted(line for line in lines if line.startswith("begun")) == sorted(f"begun {n} 0" for n in range(300))
    assert sorted(line for line in lines if line.startswith("done")) == sorted(f"done {n} True" for n in range(300))


async def test_killed(tmp_path: Path) -> None:
    """Killed at any moment of its work: what it said was done is done, the rest is free or lapses, all is whole."""
    chance = random.Random(6)
    for number in range(8):
        path = tmp_path / str(number) / "events.sqlite"
        worker = _worker(path, "killed", 1_000_000)
        assert worker.stdout is not None
        lines = [worker.stdout.readline() for _ in range(chance.randrange(1, 400))]
        await asyncio.sleep(chance.uniform(0, 0.003))  # not to wait for anything: it is to die at any moment
        worker.send_signal(signal.SIGKILL)
        lines += worker.stdout.readlines()
        worker.wait()
        worker.stdout.close()
        with sqlite3.connect(path) as database:
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        database.close()
        records = SqliteRecords(path)
        begun = sum(line.startswith("begun") for line in lines)
        done = sum(line.startswith("done") and line.endswith("True\n") for line in lines)
        assert begun - done <= 1
        for each in range(done):
            found = await records.begin(str(each), "f", "other", 10)
            assert found == Done(f"killed {each} ".encode() * 2000)
        # The one it died over may be free, taken or done, and nothing else; those after it are free.
        assert type(await records.begin(str(done), "f", "other", 10)) in (Started, InProgress, Done)
        assert await records.begin(str(done + 1), "f", "other", 10) == Started(0)
        await records.close()
