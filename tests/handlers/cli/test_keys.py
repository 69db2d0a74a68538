"""``warmstart keys``: made, listed and revoked from the command line."""

from __future__ import annotations

import argparse
import base64
import json
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

import server
from handlers.cli.keys import expiry
from handlers.operations import OPERATIONS, SCOPES
from runtime.keys.records import well_formed
from runtime.keys.ring import KeyRing


class Run:
    """``warmstart keys ...``: status, what it printed, what it complained of."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        self._capsys.readouterr()
        try:
            status = server.main(["keys", *arguments])
        except SystemExit as end:  # how argparse refuses
            status = int(end.code or 0)
        printed = self._capsys.readouterr()
        return status, printed.out, printed.err


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return Run(capsys)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """API_KEYS_FILE, not there yet."""
    monkeypatch.delenv("API_KEYS", raising=False)
    monkeypatch.setenv("API_KEYS_FILE", str(tmp_path / "keys"))
    return tmp_path / "keys"


def test_create(run: Run, path: Path) -> None:
    """The key alone on standard output, so that a script can take it; what else there is to say beside it."""
    status, out, err = run("create", "--name", "ci")
    key = out.removesuffix("\n")
    assert status == 0
    assert well_formed(key)
    caller = KeyRing("", path).bearer(key)
    assert caller is not None
    assert (caller.name, caller.scopes) == ("ci", frozenset({"*"}))
    assert caller.id in err
    assert str(path) in err
    assert key not in path.read_text() + err


def test_create_with_everything(run: Run, path: Path) -> None:
    """Scopes, expiry and limits are kept."""
    arguments = ["--scopes", "chat,models", "--expires", "2h", "--requests-per-minute", "5", "--tokens-per-minute", "0"]
    key = run("create", "--name", "ci", *arguments)[1].strip()
    caller = KeyRing("", path).bearer(key)
    assert caller is not None
    assert caller.scopes == {"chat", "models"}
    assert (caller.requests_per_minute, caller.tokens_per_minute) == (5, 0)
    later = time.time() + 7201
    assert KeyRing("", path, lambda: later).bearer(key) is None


def test_create_a_signing_key(run: Run, path: Path) -> None:
    """Its secret in base64, which the service has too, under the key's id."""
    made = json.loads(run("create", "--name", "peer", "--signing", "--json")[1])
    found = KeyRing("", path).signing(made["id"])
    assert found is not None
    assert found[1] == base64.b64decode(made["secret"])
    assert len(found[1]) == 32
    assert base64.b64decode(run("create", "--name", "peer", "--signing")[1]) not in (b"", found[1])


@pytest.mark.parametrize("kind", [[], ["--signing"]])
def test_create_without_a_file(run: Run, monkeypatch: pytest.MonkeyPatch, kind: list[str]) -> None:
    """The key, and its record for API_KEYS; as JSON both are fields."""
    monkeypatch.delenv("API_KEYS_FILE", raising=False)
    key, record = run("create", "--name", "ci", *kind)[1].splitlines()
    made = json.loads(run("create", "--name", "ci", "--json", *kind)[1])
    for text, shown, id_ in (
        (record, key, json.loads(record)["id"]),
        (json.dumps(made["record"]), made["secret" if kind else "key"], made["id"]),
    ):
        ring = KeyRing(text, None)
        found = ring.signing(id_) if kind else ring.bearer(shown)
        assert found is not None


def test_another_file(run: Run, path: Path, tmp_path: Path) -> None:
    """--file goes before API_KEYS_FILE in each command."""
    other = str(tmp_path / "other")
    made = json.loads(run("create", "--name", "ci", "--json", "--file", other)[1])
    assert not path.exists()
    assert [row["id"] for row in json.loads(run("list", "--json", "--file", other)[1])] == [made["id"]]
    assert run("revoke", made["id"], "--file", other)[0] == 0
    assert json.loads(run("list", "--json", "--file", other)[1]) == []


@pytest.mark.parametrize(
    ("arguments", "status", "fault"),
    [
        (["--name", ""], 1, "name: "),
        (["--name", "a\nb"], 1, "name: "),
        (["--name", "ci", "--scopes", "chta"], 1, "scopes: there is no chta; there are *, admin, "),
        (["--name", "ci", "--scopes", ""], 1, "scopes: "),
        (["--name", "ci", "--scopes", "clear_cache"], 1, "scopes: there is no clear_cache"),
        (["--name", "ci", "--requests-per-minute", "-1"], 1, "requests_per_minute: "),
        (["--name", "ci", "--tokens-per-minute", "99999999999"], 1, "tokens_per_minute: "),
        (["--name", "ci", "--tokens-per-minute", "x"], 2, "--tokens-per-minute"),
        (["--name", "ci", "--expires", "2020-01-01"], 2, "--expires"),
        ([], 2, "--name"),
    ],
)
def test_wrong_wishes(run: Run, path: Path, arguments: list[str], status: int, fault: str) -> None:
    """Each is named, no key is shown, and no file is made."""
    ended, out, err = run("create", *arguments)
    assert (ended, out) == (status, "")
    assert fault in err
    assert not path.exists()


@pytest.mark.parametrize(
    "text", ["", "90", "d", "0d", "-1d", "1.5d", "90D", "\u0661d", "2027-13-01", "1999-01-01", "never"]
)
def test_no_expiry(text: str) -> None:
    """What is neither a span nor a date to come is refused."""
    with pytest.raises(argparse.ArgumentTypeError):
        expiry(text)


@pytest.mark.parametrize("text", ["999999w", "9999-12-31", "0001-01-01T00:00:00+23:59"])
def test_expiry_out_of_this_world(text: str) -> None:
    """Nor is one that no calendar here can show."""
    with pytest.raises(argparse.ArgumentTypeError):
        expiry(text)


def test_expiry() -> None:
    """Spans count from now; dates begin in UTC, unless they say where."""
    for text, seconds in (("30m", 1800), ("12h", 43_200), ("90d", 7_776_000), ("2w", 1_209_600)):
        assert expiry(text) - time.time() == pytest.approx(seconds, abs=5)
    assert expiry("2999-01-01") == datetime(2999, 1, 1, tzinfo=UTC).timestamp()
    assert expiry("2999-01-01T12:00+02:00") == datetime(2999, 1, 1, 10, tzinfo=UTC).timestamp()


def test_list(run: Run, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The setting's keys and the file's, with their state; never a secret, nor what is kept of one."""
    expired = json.loads(run("create", "--name", "old", "--json", "--file", str(path) + ".env")[1])["id"]
    kept = json.loads(Path(str(path) + ".env").read_text())
    monkeypatch.setenv("API_KEYS", json.dumps(kept | {"expires": 2, "requests_per_minute": 7}))
    key = run("create", "--name", "new one", "--scopes", "chat models", "--expires", "2999-01-01")[1].strip()
    secret = run("create", "--name", "peer", "--signing")[1].strip()
    status, table, _ = run("list")
    rows = json.loads(run("list", "--json")[1])
    assert status == 0
    assert [(row["name"], row["kind"], row["scopes"], row["state"]) for row in rows] == [
        ("old", "bearer", ["*"], "expired"),
        ("new one", "bearer", ["chat", "models"], "valid"),
        ("peer", "signing", ["*"], "valid"),
    ]
    assert (rows[0]["id"], rows[0]["requests_per_minute"]) == (expired, 7)
    lines = table.splitlines()
    assert lines[0].split() == ["id", "name", "kind", "scopes", "created", "expires", "state"]
    assert "new one  bearer   chat,models" in lines[2]
    assert "2999-01-01 00:00" in lines[2]
    assert lines[3].split()[-2:] == ["never", "valid"]
    for hidden in (key, secret, kept["sha256"]):
        assert hidden not in table + json.dumps(rows)


def test_list_nothing(run: Run, path: Path) -> None:
    """A file that is not there is an error; one without keys is an empty table."""
    assert run("list")[0] == 1
    path.touch(0o600)
    assert run("list")[:2] == (0, "id  name  kind  scopes  created  expires  state\n")


def test_revoke(run: Run, path: Path) -> None:
    """By id, or by a name that no other key has."""
    first = json.loads(run("create", "--name", "one", "--json")[1])
    second = json.loads(run("create", "--name", "two", "--json")[1])
    assert run("revoke", first["id"])[1] == f"{first['id']} (one) is revoked\n"
    assert KeyRing("", path).bearer(first["key"]) is None
    assert KeyRing("", path).bearer(second["key"])
    assert json.loads(run("revoke", "two", "--json")[1]) == {"id": second["id"], "name": "two", "state": "revoked"}
    assert path.read_text() == ""


def test_revoke_who(run: Run, path: Path) -> None:
    """A name that several keys have, or none, is refused; the ids are told, and nothing is changed."""
    ids = [json.loads(run("create", "--name", "ci", "--json")[1])["id"] for _ in range(2)]
    before = path.read_bytes()
    for wrong in ("ci", "nobody", ids[0][:-1], ""):
        status, out, err = run("revoke", wrong)
        assert (status, out) == (1, "")
        assert all((id_ in err) == (wrong == "ci") for id_ in ids)
    assert path.read_bytes() == before


def test_revoke_without_a_file(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment cannot be changed from here, which is said."""
    monkeypatch.delenv("API_KEYS_FILE", raising=False)
    status, _, err = run("revoke", "ci")
    assert status == 1
    assert "API_KEYS" in err


def test_a_broken_file(run: Run, path: Path) -> None:
    """Every command names record and field and leaves it alone."""
    path.write_text('{"id": "k_1", "name": 5}')
    for arguments in (["create", "--name", "ci"], ["revoke", "k_1"], ["list"]):
        status, out, err = run(*arguments)
        assert status in (1, 2)
        assert out == ""
        assert f"{path}: record 1: name: must be" in err
    assert path.read_text() == '{"id": "k_1", "name": 5}'


def test_scopes_are_the_operations() -> None:
    """Every operation that changes nothing for others has a scope, and so have events; the others share admin."""
    plain = {name for name, operation in OPERATIONS.items() if not operation.admin}
    assert plain | {"events", "metrics", "*", "admin"} == SCOPES
    assert {"load_model", "unload_model", "default_model", "clear_cache"} == OPERATIONS.keys() - SCOPES
