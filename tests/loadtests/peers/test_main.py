from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loadtests.peers.__main__ import find, parser
from loadtests.service import ROOT


def test_peers_that_are_not_here_are_told_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Warmstart is always measured; a path that does not exist is no peer."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("LLAMA_SERVER", "TRANSFORMERS", "VLLM"):
        monkeypatch.delenv(name, raising=False)
    found = find(parser().parse_args(["--llama-server", "/nowhere/llama-server", f"--models={tmp_path}"]))
    assert [server.key for server in found] == ["warmstart"]
    told = capsys.readouterr().err
    assert "/nowhere/llama-server" in told
    assert "--transformers" in told
    assert "--vllm" in told


def test_peers_are_found_by_variables_with_models_that_were_made_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A converted model is used again; both kinds of transformers serve come from one script."""
    for name in ("LLAMA_SERVER", "TRANSFORMERS", "VLLM"):
        (tmp_path / name).touch()
        monkeypatch.setenv(name, str(tmp_path / name))
    (tmp_path / "Model.Q8_0.gguf").touch()
    (tmp_path / "Model-bf16").mkdir()
    found = find(parser().parse_args([f"--gguf={tmp_path / 'Model.Q4_1.gguf'}", f"--models={tmp_path}", "--q4"]))
    keys = ["warmstart", "llama-q8_0", "llama-q4_1", "transformers", "transformers-cb", "vllm"]
    assert [server.key for server in found] == keys
    assert str(tmp_path / "Model.Q8_0.gguf") in found[1].command
    assert str(tmp_path / "Model.Q4_1.gguf") in found[2].command
    assert found[0].environment["MODEL_NAME"] == str(tmp_path / "Model.Q4_1.gguf")


def test_sigterm_ends_the_measurement_and_the_server_it_measures(tmp_path: Path) -> None:
    """As Ctrl-C does; a shell that starts it in the background may have it ignore Ctrl-C."""
    hang, child = tmp_path / "python", tmp_path / "child"
    hang.write_text(f"#!/bin/sh\ncase $1 in server.py) echo $$ >{child}; exec sleep 600;; esac\n")
    hang.chmod(0o755)
    command = [sys.executable, "-m", "loadtests.peers", f"--warmstart={hang}", "--servers=warmstart"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (child.exists() and child.read_text()):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 130
    assert not Path(f"/proc/{int(child.read_text())}").exists()
