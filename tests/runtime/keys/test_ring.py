"""runtime.keys.ring: which keys are good now, and a file that changes beneath it."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from runtime.errors import SettingsError
from runtime.keys.records import MAX_FILE_BYTES, KeyRecord, digest, new_key, new_secret
from runtime.keys.ring import KeyRing
from runtime.types import Caller
from tests.support.clock import Clock


def _record(key: str, id_: str = "k_1", expires: float | None = None, **about: Any) -> str:
    return KeyRecord(Caller(id_, "ci", frozenset({"*"}), **about), 1, expires, digest(key)).line() + "\n"


def _signing(secret: bytes, id_: str = "k_s", expires: float | None = None) -> str:
    return KeyRecord(Caller(id_, "peer", frozenset({"chat"})), 1, expires, secret=secret).line() + "\n"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.touch(0o600)
    return path


KEY, OTHER = new_key(), new_key()


def test_a_good_key() -> None:
    """Says who shows it, with what it may do."""
    ring = KeyRing(_record(KEY, requests_per_minute=5), None)
    assert ring.bearer(KEY) == Caller("k_1", "ci", frozenset({"*"}), requests_per_minute=5)


@pytest.mark.parametrize(
    "wrong",
    [OTHER, "", KEY[:-1], KEY + " ", KEY.swapcase(), digest(KEY).hex(), "é", "\ud800", "x" * 100_000],
    ids=["another", "empty", "shorter", "longer", "other case", "what is kept", "no ASCII", "no text", "endless"],
)
def test_a_wrong_key(wrong: str) -> None:
    """Is nobody's: neither part of a key, nor what is kept of it, nor any text at all."""
    assert KeyRing(_record(KEY), None).bearer(wrong) is None


def test_no_key_at_all(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody may call then, which the log says at once."""
    ring = KeyRing("", None)
    assert ring.bearer("") is None
    assert "all requests are refused" in caplog.text


def test_signing_keys_are_apart() -> None:
    """A signing key is found by its id; its secret is no API key, and an API key's id no signing key."""
    secret = new_secret()
    ring = KeyRing(_record(KEY) + _signing(secret), None)
    assert ring.signing("k_s") == (Caller("k_s", "peer", frozenset({"chat"})), secret)
    assert [ring.signing(id_) for id_ in ("k_1", "k_2", "")] == [None] * 3
    assert ring.bearer(secret.hex()) is None
    assert ring.bearer("") is None  # b"" is what a signing key has in a digest's place


def test_expiry(clock: Clock, path: Path) -> None:
    """A key ends at its moment, without anything being read again."""
    path.write_text(_record(OTHER, "k_2", 1000.2) + _signing(b"s" * 32, "k_s", 1000.2))
    ring = KeyRing(_record(KEY, expires=1000.2), path, clock)
    assert ring.bearer(KEY)
    assert ring.bearer(OTHER)
    assert ring.signing("k_s")
    clock.now = 1000.2
    assert (ring.bearer(KEY), ring.bearer(OTHER), ring.signing("k_s")) == (None, None, None)


def test_why_not(clock: Clock) -> None:
    """The log tells an expired key, by its id, from one that never was and from one mistyped."""
    ring = KeyRing(_record(KEY, expires=999), None, clock)
    assert ring.invalid_reason(KEY) == "expired key k_1"
    assert ring.invalid_reason(OTHER) == "unknown key"
    assert ring.invalid_reason(OTHER[:-1]) == "malformed key"


def test_rotation(clock: Clock, path: Path) -> None:
    """Two keys of one name are good at once; then the old one goes, and the new one stays."""
    path.write_text(_record(KEY))
    ring = KeyRing("", path, clock)
    path.write_text(_record(KEY) + _record(OTHER, "k_2"))
    clock.now += 1
    assert ring.bearer(KEY)
    assert ring.bearer(OTHER)
    path.write_text(_record(OTHER, "k_2"))
    clock.now += 1
    assert ring.bearer(KEY) is None
    assert ring.bearer(OTHER)


def test_the_file_and_the_setting_are_added(clock: Clock, path: Path) -> None:
    """Keys of both are good; what changes in the file does not touch the setting's."""
    path.write_text(_record(OTHER, "k_2"))
    ring = KeyRing(_record(KEY), path, clock)
    assert ring.bearer(KEY)
    assert ring.bearer(OTHER)
    path.write_text("")
    clock.now += 1
    assert ring.bearer(KEY)
    assert ring.bearer(OTHER) is None


def test_looked_at_once_a_second(clock: Clock, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many requests there are; and when the clock is set back, not an hour later."""
    looks: list[Path] = []
    stat = os.stat

    def look(name: Any, **options: Any) -> os.stat_result:
        if name is path:
            looks.append(name)
        return stat(name, **options)

    monkeypatch.setattr(os, "stat", look)
    ring = KeyRing("", path, clock)
    for _ in range(1000):
        ring.bearer(KEY)
    assert looks == []
    clock.now += 1
    ring.bearer(KEY)
    ring.signing("k_s")
    assert looks == [path]
    clock.now -= 3600
    ring.bearer(KEY)
    assert looks == [path, path]


def test_an_unchanged_file_is_not_read(clock: Clock, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only its status is looked at."""
    ring = KeyRing("", path, clock)

    def refuse(*_: object) -> None:
        raise AssertionError("the file was opened")

    monkeypatch.setattr(os, "open", refuse)
    clock.now += 1
    assert ring.bearer(KEY) is None


def _replaced(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


def _mounted(path: Path, text: str) -> None:
    """As Kubernetes mounts a secret: the file is a link, and where it leads is exchanged."""
    new = path.with_name(f"version-{len(list(path.parent.iterdir()))}")
    new.write_text(text)
    link = path.with_suffix(".link")
    link.symlink_to(new)
    link.replace(path)


@pytest.mark.parametrize("write", [Path.write_text, _replaced, _mounted])
def test_every_way_to_change_it_is_seen(clock: Clock, path: Path, write: Callable[[Path, str], Any]) -> None:
    """Written in place, exchanged for another file, or a link that leads elsewhere."""
    ring = KeyRing("", path, clock)
    for key, other in ((KEY, OTHER), (OTHER, KEY)):
        write(path, _record(key))
        clock.now += 1
        assert ring.bearer(key)
        assert ring.bearer(other) is None


def test_as_many_bytes_at_the_same_time(clock: Clock, path: Path) -> None:
    """A change that keeps size and modification time is seen too, as no tool can set the change time."""
    path.write_text(_record(KEY))
    os.utime(path, ns=(1, 1))
    ring = KeyRing("", path, clock)
    path.write_text(_record(OTHER))
    os.utime(path, ns=(1, 1))
    clock.now += 1
    assert ring.bearer(OTHER)


def _gone(path: Path) -> None:
    path.unlink()


def _a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


def _a_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


BROKEN: list[Callable[[Path], Any]] = [
    _gone,
    _a_folder,
    _a_pipe,
    _a_loop,
    lambda path: path.write_text(_record(KEY)[:-10]),  # half-written
    lambda path: path.write_text("not JSON"),
    lambda path: path.write_text(OTHER),
    lambda path: path.write_bytes(b"\xff\xfe"),
    lambda path: path.write_text(_record(OTHER, "k_0")),  # an id that the setting has
    lambda path: path.write_text(" " * (MAX_FILE_BYTES + 1)),
]


@pytest.mark.parametrize("breaks", BROKEN)
def test_a_broken_file_keeps_the_last_good_keys(
    clock: Clock, path: Path, caplog: pytest.LogCaptureFixture, breaks: Callable[[Path], Any]
) -> None:
    """One error for each change, which names the file and nothing that is in it; once it is mended, it holds again."""
    path.write_text(_record(KEY))
    ring = KeyRing(_record(new_key(), "k_0"), path, clock)
    breaks(path)
    for _ in range(5):
        clock.now += 1
        assert ring.bearer(KEY)
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1
    assert "stay valid" in errors[0].getMessage()
    for secret in (KEY, OTHER, digest(KEY).hex(), digest(OTHER).hex()):
        assert secret not in caplog.text
    if path.is_dir():
        path.rmdir()
    path.unlink(missing_ok=True)
    path.write_text(_record(OTHER, "k_2"))
    clock.now += 1
    assert ring.bearer(OTHER)
    assert ring.bearer(KEY) is None


@pytest.mark.parametrize("breaks", BROKEN)
def test_a_broken_file_stops_the_start(path: Path, breaks: Callable[[Path], Any]) -> None:
    """With the setting's name and the file's, and nothing that is in it."""
    breaks(path)
    with pytest.raises(SettingsError, match=r"^API_KEYS_FILE: .*") as raised:
        KeyRing(_record(new_key(), "k_0"), path)
    for secret in (KEY, OTHER, digest(KEY).hex(), digest(OTHER).hex()):
        assert secret not in str(raised.value)


def test_a_wrong_setting_stops_the_start() -> None:
    """Also when somebody puts the key itself where its record belongs, which is not repeated."""
    with pytest.raises(SettingsError, match=r"^API_KEYS: record 2 is not JSON") as raised:
        KeyRing(_record(OTHER) + KEY, None)
    assert KEY not in str(raised.value)


def test_unknown_scopes_stop_the_start() -> None:
    """Where all scopes are told, a record with another one is a slip."""
    with pytest.raises(SettingsError, match="API_KEYS: record 1: scopes: there is no chat"):
        KeyRing(_signing(b"s" * 32), None, scopes={"*"})


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640, 0o604, 0o660])
def test_a_file_for_all_to_read(clock: Clock, path: Path, caplog: pytest.LogCaptureFixture, mode: int) -> None:
    """Is warned about once, however often it is read."""
    path.chmod(mode)
    ring = KeyRing("", path, clock)
    for number in range(3):
        path.write_text(_record(KEY, f"k_{number}"))
        clock.now += 1
        assert ring.bearer(KEY)
    assert len([record for record in caplog.records if "chmod 600" in record.getMessage()]) == bool(mode & 0o077)


def test_nothing_tells_how_near_a_guess_was() -> None:
    """A wrong key runs the same lines whatever it shares with a right one: a byte, all but one, its length."""
    ring = KeyRing(_record(KEY), None)
    guesses = [KEY[:length] + "~" * (len(KEY) - length) for length in range(len(KEY))]
    guesses += [OTHER, KEY + "~", KEY[:-1], KEY.swapcase(), "~", ""]

    def path_of(guess: str) -> list[tuple[str, int]]:
        lines: list[tuple[str, int]] = []

        def trace(frame: FrameType, event: str, argument: object) -> Any:
            if frame.f_globals["__name__"].startswith("runtime."):  # not what the collector calls meanwhile
                lines.append((frame.f_code.co_filename, frame.f_lineno))
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            assert ring.bearer(guess) is None
        finally:
            sys.settrace(before)
        return lines

    paths = [path_of(guess) for guess in guesses]
    assert len(paths[0]) > 5
    assert all(path == paths[0] for path in paths)


def test_repr_tells_nothing() -> None:
    """Neither the ring's repr nor its records'."""
    ring = KeyRing(_record(KEY) + _signing(b"s" * 32), None)
    shown = repr(ring) + repr(vars(ring))
    assert KEY not in shown
    assert "ssss" not in shown
    assert json.dumps(KEY) not in shown
