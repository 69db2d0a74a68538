"""runtime.audit.verify: whatever is done to the files of a log is found, and what is no tampering is not called so."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.audit.chain import AuditKeys
from runtime.audit.verify import files_of, verify
from tests.runtime.audit.logs import check, opened, records, written


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of three runs in several files; nobody changes it."""
    path = tmp_path_factory.mktemp("kept") / "audit.log"
    for _ in range(3):
        written(path, 4, max_bytes=900)
    return path


@pytest.fixture
def path(kept: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(kept.parent, tmp_path / "copy")
    return tmp_path / "copy" / kept.name


def total(path: Path) -> int:
    """Records in all its files."""
    return sum(len(records(file)) for file in files_of([path]))


def test_a_whole_log(kept: Path) -> None:
    """Nothing is wrong and nothing to note; the last record is the anchor."""
    report = check(kept)
    last = records(kept)[-1]
    assert (report.problem, report.notes) == (None, [])
    assert (report.count, report.sequence, report.mac) == (total(kept), last["seq"], last["mac"])
    assert len(files_of([kept])) >= 3


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_edit_of_any_byte_of_any_file_is_found(kept: Path, tmp_path: Path, data: st.DataObject) -> None:
    """Replaced, added or taken away, in any file of the log, the last line and the head included."""
    files = [*files_of([kept]), Path(f"{kept}.head")]
    for file in files:
        shutil.copy(file, tmp_path)
    target = tmp_path / data.draw(st.sampled_from(files)).name
    content = target.read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    kind = data.draw(st.sampled_from(["replace", "insert", "delete"]))
    byte = b"" if kind == "delete" else bytes([data.draw(st.integers(0, 255))])
    edited = content[:place] + byte + content[place + (kind != "insert") :]
    target.write_bytes(edited)
    report = check(tmp_path / kept.name)
    assert (report.problem is None) == (edited == content)
    if report.problem is not None and target.suffix != ".head":
        assert report.problem.startswith(f"{target}:{content[:place].count(10) + 1}: ") or (
            # a line break that is gone or new moves the trouble by a line, across files too
            byte == b"\n" or content[place : place + 1] == b"\n"
        )


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_log_cut_anywhere_is_found(kept: Path, tmp_path: Path, data: st.DataObject) -> None:
    """Any file, at any byte, all of it included."""
    files = [*files_of([kept]), Path(f"{kept}.head")]
    for file in files:
        shutil.copy(file, tmp_path)
    target = tmp_path / data.draw(st.sampled_from(files)).name
    os.truncate(target, data.draw(st.integers(0, target.stat().st_size - 1)))
    assert check(tmp_path / kept.name).problem is not None


def test_removed_last_records_are_found_by_the_head(path: Path) -> None:
    """Each number of them, with the stop record or without."""
    lines = path.read_bytes().splitlines(keepends=True)
    for left in range(len(lines)):
        path.write_bytes(b"".join(lines[:left]))
        problem = check(path).problem
        last = json.loads(lines[-1])["seq"]
        first = json.loads(lines[left])["seq"]
        missing = f"record {first} is" if first == last else f"records {first} to {last} are"
        assert problem == f"{missing} missing at the end, although {path}.head names record {last}"


def test_a_removed_head_is_noted(path: Path) -> None:
    """Then nobody can tell, unless an anchor is known."""
    head = Path(f"{path}.head")
    head.unlink()
    last = records(path)[-1]
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    report = check(path)
    assert report.problem is None
    assert report.notes[0].startswith(f"{head} is missing")
    problem = check(path, anchors=[(last["seq"], last["mac"])]).problem
    assert problem == f"record {last['seq']} is missing at the end, although --expect names record {last['seq']}"


def test_an_older_log_and_head_put_back_are_found_by_an_anchor(path: Path) -> None:
    """The chain alone cannot know; a number and MAC kept elsewhere do."""
    old = {file: file.read_bytes() for file in path.parent.iterdir()}
    written(path, 1)
    report = check(path)
    for file, content in old.items():
        file.write_bytes(content)
    assert check(path).problem is None
    assert "--expect names" in str(check(path, anchors=[(report.sequence, report.mac)]).problem)


def test_anchors(path: Path) -> None:
    """A right one is confirmed wherever it is; a wrong one, or one outside of the files, is not."""
    first, second = records(files_of([path])[0])[:2]
    assert check(path, anchors=[(1, first["mac"].upper()), (2, second["mac"])]).problem is None
    assert "record 2 does not have the MAC that --expect names" in str(check(path, anchors=[(2, first["mac"])]).problem)
    assert "record 0, which --expect names, is not in these files" in str(check(path, anchors=[(0, "0" * 64)]).problem)


@pytest.mark.parametrize("which", [0, 1, -1])
def test_a_removed_file_is_found(path: Path, which: int) -> None:
    """The first, one between, or the last of the numbered ones."""
    files = files_of([path])[:-1]
    count = [json.loads(line)["seq"] for line in files[which].read_bytes().splitlines()]
    files[which].unlink()
    problem = str(check(path).problem)
    assert f"records {count[0]} to {count[-1]} are missing before record {count[-1] + 1}" in problem


def test_archived_files_may_be_left_out(path: Path) -> None:
    """If it is said which record the rest begins with, and not of another."""
    files = files_of([path])
    since = records(files[1])[0]["seq"]
    files[0].unlink()
    assert check(path, since=since).problem is None
    assert check(path, since=since).count == total(path)
    assert check(path, since=since + 1).problem is not None
    assert check(path, since=since - 1).problem is not None


def test_files_in_another_order_are_found(path: Path) -> None:
    """By their numbers' names, swapped, they are no chain."""
    first, second = files_of([path])[:2]
    cut_path = path.with_name("aside")
    first.rename(cut_path)
    second.rename(first)
    cut_path.rename(second)
    assert "missing before record" in str(check(path).problem)


def test_lines_from_another_log_of_the_same_key_are_found(path: Path, tmp_path: Path) -> None:
    """A line that some log has under the right number is still not this log's."""
    other = tmp_path / "other.log"
    written(other, 4)
    lines = path.read_bytes().splitlines(keepends=True)
    mine = files_of([path])[0]
    lines = mine.read_bytes().splitlines(keepends=True)
    lines[1] = other.read_bytes().splitlines(keepends=True)[1]
    mine.write_bytes(b"".join(lines))
    assert f"{mine}:2: record 2 was edited or added" in str(check(path).problem)


def test_records_removed_while_the_service_was_down_stay_found(path: Path) -> None:
    """The next start goes on behind what the head tells of, so that new records cannot cover the gap."""
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-2]))
    last = records(path)[-1]["seq"]
    written(path)
    assert f"records {last + 1} to {last + 2} are missing before record {last + 3}" in str(check(path).problem)
    written(path)
    assert f"records {last + 1} to {last + 2} are missing" in str(check(path).problem)


@pytest.mark.parametrize(("content", "told"), [(None, "missing"), (b"{}", "changed")])
def test_a_head_that_was_touched_while_the_service_was_down_is_noted(
    path: Path, content: bytes | None, told: str
) -> None:
    """The start after it says so for good."""
    head = Path(f"{path}.head")
    if content is None:
        head.unlink()
    else:
        head.write_bytes(content)
    written(path)
    report = check(path)
    assert report.problem is None
    assert [note.partition(": ")[2] for note in report.notes] == [f"at this start the .head file was {told}"]


def test_a_log_that_is_being_written(path: Path) -> None:
    """Running, with or without a half-written last line, is noted and no problem."""
    log = opened(path)
    log.write("request", {})
    running = "there is no stop record at the end: the service is running, or it was killed"
    assert (check(path).problem, check(path).notes) == (None, [running])
    with path.open("ab") as file:
        file.write(b'{"seq":')
    report = check(path)
    assert report.problem is None
    assert report.notes[0].endswith("the last record is incomplete: the service crashed, or is writing it now")
    os.truncate(path, path.stat().st_size - 7)
    log.close()


def test_a_half_line_after_the_stop_is_no_crash(path: Path) -> None:
    """Nobody was writing then."""
    with path.open("ab") as file:
        file.write(b'{"seq":')
    assert "this is not a record" in str(check(path).problem)


def test_a_start_without_a_stop_before_it_is_noted(path: Path) -> None:
    """A kill leaves no stop record."""
    log = opened(path)
    log._release()
    line = len(records(path)) + 1
    written(path)
    report = check(path)
    assert report.problem is None
    assert report.notes == [f"{path}:{line}: the service ended without a stop record before this start"]


def test_another_key(path: Path) -> None:
    """The first record does not verify, and that is said."""
    Path(f"{path}.head").unlink()
    report = verify(files_of([path]), AuditKeys.derive("another secret of thirty-two characters"))
    assert "or the key is not the one it was written with" in str(report.problem)


def test_a_file_of_anything(tmp_path: Path) -> None:
    """Whatever it is given, it says that this is no audit log; memory stays bounded by a line's length."""
    file = tmp_path / "audit.log"
    for content in (b"x" * 3_000_000, b"\0" * 5000, b"\n" * 10, os.urandom(5000)):
        file.write_bytes(content)
        assert "this is not a record" in str(check(file).problem)
    file.write_bytes(b"")
    assert check(file).problem is None


def test_a_missing_file(tmp_path: Path) -> None:
    """It is an error, not an empty log."""
    with pytest.raises(FileNotFoundError):
        check(tmp_path / "audit.log")
