"""``warmstart batch``: over the real application on a fake model."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import server
from tests.support.batches import chats, input_text, storing
from tests.support.fakes import serving

CHAT = "/v1/chat/completions"


class Run:
    """``warmstart batch ...`` against a service: status, what it printed, what it complained of."""

    def __init__(self, capsys: pytest.CaptureFixture[str], url: str) -> None:
        self._capsys, self._url = capsys, url

    async def __call__(self, *arguments: object) -> tuple[int, str, str]:
        self._capsys.readouterr()
        command = ["batch", *map(str, arguments), "--url", self._url]
        status = await asyncio.to_thread(server.main, command)
        printed = self._capsys.readouterr()
        return status, printed.out, printed.err


@pytest.fixture
async def run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Run]:
    """The command, and a service with files."""
    monkeypatch.setattr("handlers.cli.batch._POLL_SECONDS", 0.01)
    folder = tmp_path / "files"
    async with serving(storing(folder), files_dir=folder, files_max_bytes=100_000) as url:
        yield Run(capsys, url)


async def test_run(run: Run, tmp_path: Path) -> None:
    """The answers and the errors are in files beside the input, which replace older ones; 1 says that a row failed."""
    path = tmp_path / "in.jsonl"
    path.write_text(input_text([*chats(3), {"messages": []}], CHAT))
    status, out, err = await run("run", path)
    assert (status, out) == (1, "")
    assert err.splitlines()[-1].endswith("is completed, 3 of 4 answered, 1 failed")
    lines = [json.loads(line) for line in (tmp_path / "in.output.jsonl").read_text().splitlines()]
    assert [line["custom_id"] for line in lines] == ["row-0", "row-1", "row-2"]
    assert json.loads((tmp_path / "in.errors.jsonl").read_text())["custom_id"] == "row-3"
    path.write_text(input_text(chats(1), CHAT))
    assert (await run("run", path))[0] == 0
    assert (tmp_path / "in.errors.jsonl").read_text() == ""
    status, out, _ = await run("ls")
    assert [line.split()[1:6] for line in out.splitlines()[1:]] == [
        ["completed", "1", "1", "0", CHAT],
        ["completed", "4", "3", "1", CHAT],
    ]
    assert sorted(os.listdir(tmp_path)) == ["files", "in.errors.jsonl", "in.jsonl", "in.output.jsonl"]


async def test_wait_and_cancel(run: Run, tmp_path: Path) -> None:
    """``--no-wait`` prints the id that ``wait`` takes; what has ended cannot be cancelled."""
    path, output = tmp_path / "in.jsonl", tmp_path / "answers"
    path.write_text(input_text(chats(2), CHAT))
    status, out, _ = await run("run", path, "--no-wait", "--window", "1h")
    assert status == 0
    status, _, _ = await run("wait", out.strip(), "--output", output, "--errors", tmp_path / "errors")
    assert (status, len(output.read_text().splitlines())) == (0, 2)
    status, _, err = await run("cancel", out.strip())
    assert (status, "cannot be cancelled" in err) == (1, True)
    assert (await run("wait", "batch_x"))[2] == "warmstart: batch_id: there is no such batch\n"


async def test_wrong_files(run: Run, tmp_path: Path) -> None:
    """Wrong lines are named, a refusal is told in the service's words, and ``--endpoint`` is needed without a url."""
    path = tmp_path / "in.jsonl"
    path.write_text(input_text(chats(1), CHAT) + "{}\n")
    status, _, err = await run("run", path)
    assert (status, "warmstart: line 2: " in err) == (1, True)
    path.write_text("{}\n")
    assert "no url; give --endpoint" in (await run("run", path))[2]
    assert "endpoint: should be one of" in (await run("run", path, "--endpoint", "/x"))[2]
    path.write_text(input_text(chats(5000), CHAT))
    assert "FILES_MAX_BYTES" in (await run("run", path))[2]
    assert "No such file" in (await run("run", tmp_path / "none"))[2]


async def test_interrupted(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C leaves the batch, and says how to wait for it again."""
    path = tmp_path / "in.jsonl"
    path.write_text(input_text(chats(1), CHAT))

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("handlers.cli.batch.time.sleep", interrupt)
    status, _, err = await run("run", path)
    assert status == 130
    assert "the batch goes on: warmstart batch wait batch_" in err
