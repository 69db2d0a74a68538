"""runtime.audit.log: records reach the file whatever happens to it, and what happens is told."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import stat
from pathlib import Path

import pytest

from runtime.audit.chain import AuditKeys
from runtime.audit.log import AuditLog
from runtime.audit.verify import files_of, verify
from runtime.errors import SettingsError
from tests.runtime.audit.logs import KEYS, check, opened, records, written
from tests.support.fakes import until
from tests.support.full_disk import full_disk


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a log may be."""
    return tmp_path / "audit.log"


def test_records(path: Path) -> None:
    """Start, requests, stop: one JSON line each, counted from 1, with the time to the microsecond in UTC."""
    log = opened(path, clock=lambda: 1_700_000_000.000001)
    assert log.write("request", {"status": 200})
    log.close()
    start, request, stop = records(path)
    assert [record["event"] for record in (start, request, stop)] == ["start", "request", "stop"]
    assert start["pid"] == os.getpid()
    del request["mac"]
    assert request == {"seq": 2, "time": "2023-11-14T22:13:20.000001Z", "event": "request", "status": 200}
    assert check(path).problem is None


def test_only_its_owner_may_read_it(path: Path) -> None:
    """All its files have mode 0600, whatever the umask."""
    before = os.umask(0)
    try:
        written(path, max_bytes=300)
    finally:
        os.umask(before)
    files = list(path.parent.iterdir())
    assert len(files) > 3
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def test_text_cannot_leave_its_line(path: Path) -> None:
    """Line breaks of any alphabet, control characters, quotes and what is no Unicode are escaped; nothing is lost."""
    nasty = 'a\r\nb\x00\x1b[31m"}\n{"seq":9}\u2028\u0085\ud800\U0001f600\\'
    log = opened(path)
    log.write("request", {"path": nasty, nasty: 1})
    log.close()
    data = path.read_bytes()
    assert data.count(b"\n") == 3
    assert re.fullmatch(rb"[\x20-\x7e\n]+", data)
    assert records(path)[1]["path"] == nasty


def test_another_start_goes_on_with_the_chain(path: Path) -> None:
    """Numbers go on, each start and stop is there, and the whole is one chain."""
    for _ in range(3):
        written(path)
    assert [record["seq"] for record in records(path)] == list(range(1, 16))
    report = check(path)
    assert (report.problem, report.count, report.notes) == (None, 15, [])


def test_rotation(path: Path) -> None:
    """At the size limit it goes on in a new file; old ones are numbered, never overwritten, and all are one chain."""
    taken = path.with_name("audit.log.000002")
    taken.write_bytes(b"")
    written(path, 20, max_bytes=600)
    files = sorted(path.parent.glob("audit.log.0*"))
    assert files[0] == taken
    assert taken.read_bytes() == b""
    assert files[1].name == "audit.log.000003"
    assert all(600 <= file.stat().st_size < 1200 for file in files[1:])
    assert records(files[2])[0]["event"] == "rotated"
    assert records(files[2])[0]["from"] == files[1].name
    written(path, 20, max_bytes=600)
    report = check(path)
    assert report.problem is None
    assert report.count == 44 + sum(
        record["event"] == "rotated" for file in files_of([path]) for record in records(file)
    )
    assert not path.with_name("audit.log.000001").exists()


def test_a_crash_between_rotating_and_the_next_record(path: Path) -> None:
    """The chain goes on from the last file that has a record."""
    written(path, max_bytes=10**9)
    path.rename(path.with_name("audit.log.000001"))
    path.write_bytes(b"")
    written(path)
    report = check(path)
    assert (report.problem, report.count, report.notes) == (None, 10, [])


def test_rotation_that_fails_loses_nothing(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is told once, and the log goes on in the file that it has."""
    errors: list[int] = []
    log = opened(path, max_bytes=400, on_error=lambda: errors.append(1))
    cut_path = path.with_name("aside")
    path.rename(cut_path)  # so that it cannot be renamed
    for number in range(30):
        assert log.write("request", {"number": number})
    assert 1 < len(errors) < 30
    assert len([record for record in caplog.records if "rotate" in record.getMessage()]) == 1
    cut_path.rename(path)
    log.look()
    log.close()
    report = check(path)
    assert report.problem is None
    assert report.count == 33


def test_two_processes_never_write_one_file(path: Path) -> None:
    """The second is refused at its start, by any name of the file, and may come when the first has gone."""
    log = opened(path)
    with pytest.raises(SettingsError, match=r"AUDIT_LOG: another process writes .*audit\.log"):
        opened(path.parent / "." / path.name)
    assert log.write("request", {})
    log.close()
    written(path)
    assert check(path).problem is None


@pytest.mark.parametrize("what", ["folder", "missing folder", "link", "device", "pipe", "file as folder"])
def test_what_is_no_place_for_a_log(tmp_path: Path, what: str) -> None:
    """It is refused at the start, by name, and nothing waits or is written."""
    path = tmp_path / "audit.log"
    target = tmp_path / "victim"
    target.write_bytes(b"untouched")
    if what == "folder":
        path.mkdir()
    elif what == "missing folder":
        path = tmp_path / "nowhere" / "audit.log"
    elif what == "link":
        path.symlink_to(target)
    elif what == "device":
        path = Path("/dev/null") if os.geteuid() else tmp_path / "null"
        if not path.exists():
            os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    elif what == "pipe":
        os.mkfifo(path)
    else:
        path = target / "audit.log"
    with pytest.raises(SettingsError, match=r"^AUDIT_LOG: "):
        opened(path)
    assert target.read_bytes() == b"untouched"


def test_another_key_is_refused(path: Path) -> None:
    """A chain cannot go on under another key; the message says what to do and shows neither."""
    written(path)
    before = path.read_bytes()
    with pytest.raises(SettingsError, match=r"AUDIT_LOG: .*not written with this AUDIT_KEY.*move the file") as error:
        AuditLog(path, AuditKeys.derive("another secret of thirty-two characters"), 10**9).open()
    assert "secret" not in str(error.value)
    assert path.read_bytes() == before
    written(path)  # and the file was let go


@pytest.mark.parametrize("content", [b"my diary\n", b"{}\n", b'{"seq":1}\n', b'{"seq":1,"prev":"00"}\n', b"\n\n"])
def test_what_is_no_audit_log_is_not_written_to(path: Path, content: bytes) -> None:
    """Somebody else's file keeps its content."""
    path.write_bytes(content)
    with pytest.raises(SettingsError, match="AUDIT_LOG"):
        opened(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("left", [1, 30, 150, 70_000])
def test_a_half_written_record_is_put_aside(path: Path, left: int) -> None:
    """What a crash left of a record goes to a file of its own; the chain goes on, and it is told as what it is."""
    written(path)
    partial = path.read_bytes().splitlines(keepends=True)[-1][:-1].ljust(left, b"\0")[:left]
    with path.open("ab") as file:
        file.write(partial)
    written(path)
    assert path.with_name("audit.log.cut").read_bytes() == partial + b"\n"
    assert records(path)[5]["cut_bytes"] == left
    report = check(path)
    assert (report.problem, report.count) == (None, 10)
    assert report.notes == [f"{path}:6: at this start {left} bytes of an incomplete record were moved to .cut"]


def test_a_full_disk_is_told_and_survived(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No half record stays, the error is logged once, each lost record is counted, and the next one says how many."""
    errors: list[int] = []
    log = opened(path, on_error=lambda: errors.append(1))
    assert log.write("request", {"text": "x" * 500})
    size = path.stat().st_size
    with full_disk(size + 40):
        assert [log.write("request", {"text": "x" * 500}) for _ in range(7)] == [False] * 7
        assert log.failing
        log.look()
        assert path.stat().st_size == size
    assert len(errors) == 7
    assert log.write("request", {"after": True})
    assert not log.failing
    log.close()
    assert [record.get("lost") for record in records(path)] == [None, None, 7, None]
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert told == ["cannot write the audit log: the record was written only in part; the disk may be full"]
    assert "the audit log can be written again; 7 records are lost" in caplog.text
    report = check(path)
    assert report.problem is None
    assert report.notes == [f"{path}:3: 7 records before this one could not be written"]


def test_an_outage_ends_without_a_request(path: Path) -> None:
    """Once a second it is tried again; what is tried is not counted as lost."""
    log = opened(path)
    with full_disk(path):
        log.write("request", {})
        log.look()
        log.look()
        assert log.failing
    log.look()
    assert not log.failing
    assert records(path)[-1] | {"event": "recovered", "lost": 1} == records(path)[-1]
    log.close()
    assert check(path).problem is None


def test_a_start_on_a_full_disk(path: Path) -> None:
    """It is no wrong setting: the service runs, and the log begins when it can."""
    with full_disk(0):
        log = opened(path)
        assert log.failing
    log.look()
    log.close()
    assert [record["event"] for record in records(path)] == ["recovered", "stop"]
    assert check(path).problem is None


async def test_records_reach_the_disk_once_a_second(path: Path) -> None:
    """The head tells the last record that is on the disk, soon after it was written, and not by the event loop."""
    log = opened(path)
    head = path.with_name("audit.log.head")
    keeping = asyncio.create_task(log.keep())
    log.write("request", {})
    await until(lambda: head.exists() and json.loads(head.read_bytes())["seq"] == 2)
    log.write("request", {})
    await until(lambda: json.loads(head.read_bytes())["seq"] == 3)
    keeping.cancel()
    log.close()
    assert json.loads(head.read_bytes())["seq"] == 4


def test_a_head_that_cannot_be_written_is_a_failure(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Records that may not be on the disk are no reason for trust: it is told, counted, and tried again."""
    errors: list[int] = []
    log = opened(path, on_error=lambda: errors.append(1))
    blocked = path.with_name("audit.log.head.new")
    blocked.mkdir()
    log.write("request", {})
    log._sync(*log._pending())
    assert log.failing
    assert (len(errors), "cannot sync the audit log" in caplog.text) == (1, True)
    blocked.rmdir()
    log._sync(*log._pending())
    assert not log.failing
    log.close()


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("removed", "removed or renamed"),
        ("renamed", "removed or renamed"),
        ("replaced", "replaced"),
        ("cut", "cut"),
        ("added", "added to"),
    ],
)
def test_what_is_done_to_the_file_is_told(path: Path, caplog: pytest.LogCaptureFixture, what: str, told: str) -> None:
    """The next look finds it, records it, and goes on where the next record will be seen."""
    log = opened(path)
    log.write("request", {"number": 1})
    if what == "removed":
        path.unlink()
    elif what == "renamed":
        path.rename(path.with_name("audit.log.1"))
    elif what == "replaced":
        path.rename(path.with_name("audit.log.1"))
        path.touch()
    elif what == "cut":
        os.truncate(path, 0)
    else:
        path.open("ab").write(b"half a line")
    log.look()
    log.look()
    log.write("request", {"number": 2})
    log.close()
    assert f"was {told} by another process" in caplog.text
    found = [json.loads(line) for line in path.read_bytes().splitlines() if line.startswith(b"{")]
    assert [record["what"] for record in found if record["event"] == "disturbed"] == [told]
    assert found[-2]["number"] == 2
    if what in ("renamed", "replaced"):  # as logrotate does it, and then nothing is lost
        assert verify([path.with_name("audit.log.1"), path], KEYS).problem is None
    else:
        assert check(path).problem is not None


def test_a_file_that_cannot_be_had_again_is_a_failure(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Records that nobody will find are as good as none; it is told, and mended when it can be."""
    log = opened(path)
    path.rename(path.with_name("audit.log.1"))
    path.mkdir()
    log.look()
    assert log.failing
    assert "cannot find the audit log" in caplog.text
    path.rmdir()
    log.look()
    assert not log.failing
    log.close()


def test_records_after_the_end_are_lost_and_break_nothing(path: Path) -> None:
    """A request that outlives the application cannot be recorded."""
    errors: list[int] = []
    log = opened(path, on_error=lambda: errors.append(1))
    log.close()
    log.close()
    assert not log.write("request", {})
    assert errors == [1]
    assert len(records(path)) == 2
