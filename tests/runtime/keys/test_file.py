"""runtime.keys.file: nothing is lost, whatever goes wrong."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from runtime.keys.file import edit, read
from runtime.keys.records import MAX_FILE_BYTES, KeyRecord, digest
from runtime.types import Caller

ROOT = Path(__file__).resolve().parents[3]
NOBODY = 65_534


def _record(id_: str) -> KeyRecord:
    return KeyRecord(Caller(id_, "ci", frozenset({"*"})), 1, None, digest(id_))


def _add(path: Path, id_: str) -> None:
    edit(path, lambda records: [*records, _record(id_)])


def _script(path: Path, ids: list[str], *, plain: bool = False) -> list[str]:
    """A process that adds records; if wanted without root's right to write everywhere."""
    code = f"""
import os
from pathlib import Path
from tests.runtime.keys.test_file import _add
if {plain} and os.geteuid() == 0:
    os.seteuid({NOBODY})
for id_ in {ids!r}:
    _add(Path({str(path)!r}), id_)
"""
    return [sys.executable, "-c", code]


def test_a_new_file(tmp_path: Path) -> None:
    """Is for its owner only, whatever the process's mask lets others do."""
    path, mask = tmp_path / "keys", os.umask(0)
    try:
        _add(path, "k_1")
    finally:
        os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read(path) == [_record("k_1")]


def test_records_are_added_and_removed(tmp_path: Path) -> None:
    """All others stay as they are, in their order; and nothing but the file and its lock is left."""
    path = tmp_path / "keys"
    for number in range(3):
        _add(path, f"k_{number}")
    edit(path, lambda records: [record for record in records if record.caller.id != "k_1"])
    assert read(path) == [_record("k_0"), _record("k_2")]
    assert sorted(file.name for file in tmp_path.iterdir()) == [".keys.lock", "keys"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o400])
def test_owner_and_mode_stay(tmp_path: Path, mode: int) -> None:
    """So that the service can still read what an administrator has changed."""
    path = tmp_path / "keys"
    path.touch()
    path.chmod(mode)
    if os.geteuid() == 0:
        os.chown(path, NOBODY, NOBODY)
    before = path.stat()
    _add(path, "k_1")
    after = path.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert after.st_ino != before.st_ino


def test_a_link_stays_one(tmp_path: Path) -> None:
    """What it leads to is changed."""
    path = tmp_path / "link"
    (tmp_path / "keys").touch()
    path.symlink_to("keys")
    _add(path, "k_1")
    assert path.is_symlink()
    assert read(tmp_path / "keys") == [_record("k_1")]


@pytest.mark.parametrize("text", ["not JSON", '{"id": "k_1"}', "\xff"])
def test_a_broken_file_is_left_alone(tmp_path: Path, text: str) -> None:
    """Who edited it by hand mends it first; the fault names file and record."""
    path = tmp_path / "keys"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=str(path)):
        _add(path, "k_1")
    assert path.read_bytes() == text.encode("latin-1")


def test_an_id_that_is_there(tmp_path: Path) -> None:
    """Is refused before anything is written."""
    path = tmp_path / "keys"
    _add(path, "k_1")
    with pytest.raises(ValueError, match="k_1 occurs twice"):
        _add(path, "k_1")
    assert read(path) == [_record("k_1")]


def test_a_file_that_the_service_would_not_read(tmp_path: Path) -> None:
    """Is not made: it is as large as may be."""
    path = tmp_path / "keys"
    line = _record("k_0").line()
    many = [_record(f"k_{number}") for number in range(MAX_FILE_BYTES // len(line) + 1)]
    with pytest.raises(ValueError, match="larger than"):
        edit(path, lambda _: many)
    edit(path, lambda _: many[: len(many) // 2])
    assert len(read(path)) == len(many) // 2


def test_writers_at_the_same_time(tmp_path: Path) -> None:
    """Eight processes add ten records each, while the file is read all the time: none is lost, no reader sees half."""
    path = tmp_path / "keys"
    path.touch(0o600)
    ids = [[f"k_{writer}.{number}" for number in range(10)] for writer in range(8)]
    writers = [subprocess.Popen(_script(path, own), cwd=ROOT) for own in ids]
    seen = 0
    while any(writer.poll() is None for writer in writers):
        now = len(read(path))
        assert now >= seen
        seen = now
    assert [writer.returncode for writer in writers] == [0] * 8
    assert sorted(record.caller.id for record in read(path)) == sorted(id_ for own in ids for id_ in own)


def test_no_room(tmp_path: Path) -> None:
    """A process that may write no more (a limit on file sizes is its full disk) says so, and loses nothing."""
    path = tmp_path / "keys"
    for number in range(10):
        _add(path, f"k_{number}")
    before = path.read_bytes()

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before), len(before)))

    ended = subprocess.run(_script(path, ["k_new"]), cwd=ROOT, preexec_fn=limit, capture_output=True, text=True)
    assert ended.returncode == 1
    assert "File too large" in ended.stderr
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == [".keys.lock", "keys"]


def test_a_folder_that_is_read_only() -> None:
    """Who may not write there is told so, and the file is as it was."""
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        path = Path(name) / "keys"
        _add(path, "k_0")
        before = path.read_bytes()
        path.chmod(0o644)
        (path.parent / ".keys.lock").unlink()
        path.parent.chmod(0o555)
        try:
            ended = subprocess.run(_script(path, ["k_new"], plain=True), cwd=ROOT, capture_output=True, text=True)
        finally:
            path.parent.chmod(0o700)
        assert ended.returncode == 1
        assert "Permission denied" in ended.stderr
        assert path.read_bytes() == before


def test_killed_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault at each step before the new file takes the old one's place leaves the old one, and no rest."""
    path = tmp_path / "keys"
    _add(path, "k_0")
    for step in ("fsync", "replace", "fchmod"):

        def fail(*_: object) -> None:
            raise OSError("planted")

        with monkeypatch.context() as patch:
            patch.setattr(os, step, fail)
            with pytest.raises(OSError, match="planted"):
                _add(path, "k_1")
        assert read(path) == [_record("k_0")]
        assert sorted(file.name for file in tmp_path.iterdir()) == [".keys.lock", "keys"]
    _add(path, "k_1")  # and the lock was let go each time
    assert len(read(path)) == 2
