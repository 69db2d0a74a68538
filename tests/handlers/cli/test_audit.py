"""``warmstart audit``: what an operator does with an audit log."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

import server
from tests.runtime.audit.logs import SECRET, records, written


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A whole log, and its key in the environment."""
    monkeypatch.setenv("AUDIT_KEY", SECRET)
    written(tmp_path / "audit.log", max_bytes=600)
    return tmp_path / "audit.log"


def test_a_whole_log(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """How many records there are and the last one's number and MAC, to be kept elsewhere; status 0."""
    last = records(path)[-1]
    assert server.main(["audit", "verify", str(path)]) == 0
    said = capsys.readouterr()
    assert said.out == f"ok: {last['seq']} records, the last is {last['seq']}:{last['mac']}\n"
    assert server.main(["audit", "verify", str(path), "--expect", f"{last['seq']}:{last['mac']}"]) == 0


def test_a_log_that_was_changed(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first place where it does not hold, on standard error; what held before, on standard output; status 1."""
    first = path.with_name("audit.log.000001")
    first.write_bytes(first.read_bytes().replace(b'"number":0', b'"number":7'))
    assert server.main(["audit", "verify", str(path)]) == 1
    said = capsys.readouterr()
    assert said.err == f"warmstart: {first}:2: record 2 was edited or added: its MAC is wrong\n"
    assert said.out == f"1 records are intact, the last is 1:{records(first)[0]['mac']}\n"


def test_the_settings_name_file_and_key(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the service's environment is, nothing need be said."""
    monkeypatch.setenv("AUDIT_LOG", str(path))
    assert server.main(["audit", "verify"]) == 0
    assert capsys.readouterr().out.startswith("ok: ")


def test_a_key_from_a_file(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With or without a line break at its end, and without any other setting."""
    monkeypatch.delenv("AUDIT_KEY")
    key = tmp_path / "key"
    key.write_text(SECRET + "\n")
    assert server.main(["audit", "verify", str(path), "--key-file", str(key)]) == 0
    key.write_text("another secret of thirty-two characters")
    assert server.main(["audit", "verify", str(path), "--key-file", str(key)]) == 1
    said = capsys.readouterr()
    assert "secret" not in said.out + said.err


@pytest.mark.parametrize(
    ("arguments", "said", "status"),
    [
        (["verify"], "set AUDIT_LOG", 1),
        (["verify", "nowhere/audit.log"], "nowhere", 1),
        (["verify", "x", "--expect", "1:2"], "--expect: '1:2' is not SEQ:MAC", 1),
        (["verify", "x", "--since", "0"], "--since: record numbers begin with 1", 1),
        (["verify", "x", "--key-file", "/dev/null"], "--key-file: the key must have at least 32 characters", 2),
        (["hash"], "standard input must be a JSON object with a prompt, messages", 1),
    ],
)
def test_wrong_usage(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
    status: int,
) -> None:
    """One line that says what is wrong; no traceback."""
    monkeypatch.setattr("sys.stdin", io.StringIO("[]"))
    assert server.main(["audit", *arguments]) == status
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_without_a_key(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It says which setting is missing."""
    monkeypatch.delenv("AUDIT_KEY")
    assert server.main(["audit", "verify", str(path)]) == 2
    assert "AUDIT_KEY: the key must have at least 32 characters" in capsys.readouterr().err


def test_hash(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever has the key and a prompt can find it in the log, whatever else the request said."""
    shown = []
    for text in ('{"prompt": "x"}', '{"seed": 1, "prompt":"\\u0078"}', '{"prompt": "y"}'):
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        assert server.main(["audit", "hash"]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] != shown[2]
    assert len(json.dumps(shown[0].strip())) == 66
