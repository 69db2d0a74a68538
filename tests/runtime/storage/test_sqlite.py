"""runtime.storage.sqlite: one file, whoever begins it anew."""

from __future__ import annotations

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from runtime.storage.sqlite import SqliteFile

SCHEMA = ("CREATE TABLE words (word TEXT)", "PRAGMA user_version = 7")


def _open(tmp_path: Path, number: int = 7) -> SqliteFile:
    return SqliteFile(
        tmp_path / "folder" / "words.sqlite", (*SCHEMA[:-1], f"PRAGMA user_version = {number}"), number, 1
    )


def _add(file: SqliteFile, word: str) -> None:
    file.run(lambda database: database.execute("INSERT INTO words VALUES (?)", (word,)))


def _words(file: SqliteFile) -> list[str]:
    return [word for (word,) in file.run(lambda database: database.execute("SELECT word FROM words").fetchall())]


def test_shared_and_lasting(tmp_path: Path) -> None:
    """Two that open one file share what is in it, and it is there after them, for its owner's eyes only."""
    first, second = _open(tmp_path), _open(tmp_path)
    _add(first, "a")
    _add(second, "b")
    assert _words(first) == _words(second) == ["a", "b"]
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "folder").iterdir()} == {0o600}
    first.close()
    second.close()
    again = _open(tmp_path)
    assert _words(again) == ["a", "b"]
    again.close()


def test_what_fails_is_not_kept(tmp_path: Path) -> None:
    """What was not committed when work fails is undone; the next work goes on."""
    file = _open(tmp_path)
    _add(file, "a")

    def fail(database: sqlite3.Connection) -> None:
        database.execute("BEGIN IMMEDIATE")
        database.execute("INSERT INTO words VALUES ('b')")
        raise OSError("planted")

    with pytest.raises(OSError, match="planted"):
        file.run(fail)
    assert _words(file) == ["a"]
    assert file.damaged == 0
    file.close()


def test_begun_anew_once(tmp_path: Path) -> None:
    """Of two that find it damaged, one begins it anew, and the other takes that up."""
    first, second = _open(tmp_path), _open(tmp_path)
    _add(first, "old")
    assert _words(second) == ["old"]
    first.rebuild(sqlite3.DatabaseError("planted"))
    _add(first, "new")
    second.rebuild(sqlite3.DatabaseError("planted"))
    assert _words(second) == _words(first) == ["new"]
    assert (first.damaged, second.damaged) == (1, 1)
    first.close()
    second.close()


def test_removed(tmp_path: Path) -> None:
    """Where somebody removes it, nobody goes on in the file that is no more."""
    first, second = _open(tmp_path), _open(tmp_path)
    _add(first, "old")
    assert _words(second) == ["old"]
    for path in (tmp_path / "folder").iterdir():
        path.unlink()
    _add(first, "new")
    assert _words(second) == ["new"]
    first.close()
    second.close()


def test_another_format(tmp_path: Path) -> None:
    """A file of another format is none of ours, and begun anew."""
    old = _open(tmp_path, 6)
    _add(old, "old")
    old.close()
    new = _open(tmp_path)
    assert _words(new) == []
    assert new.damaged == 1
    new.close()


def test_many_open_a_new_file_at_once(tmp_path: Path) -> None:
    """Each waits for the others, also while the first puts the file in WAL mode, where SQLite itself does not wait."""
    for turn in range(40):
        opened = [_open(tmp_path / str(turn)) for _ in range(5)]
        together = threading.Barrier(len(opened))

        def add(file: SqliteFile, together: threading.Barrier = together) -> None:
            together.wait()
            _add(file, "a")

        with ThreadPoolExecutor(len(opened)) as pool:
            list(pool.map(add, opened))
        assert _words(opened[0]) == ["a"] * len(opened)
        for file in opened:
            file.close()
