from __future__ import annotations

from pathlib import Path

import pytest

from loadtests.peers.__main__ import main
from loadtests.peers.models import NoModel, embedded_gguf, q8_0


def _program(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_a_conversion_is_made_once(tmp_path: Path) -> None:
    """The file appears whole under its name, and is not made again."""
    quantize = _program(tmp_path / "llama-quantize", f'echo x >>{tmp_path}/calls; cp "$2" "$3"')
    gguf = tmp_path / "Model-1.5B.Q4_1.gguf"
    gguf.write_text("weights")
    for _ in range(2):
        made = q8_0(gguf, quantize, tmp_path)
        assert (made.name, made.read_text()) == ("Model-1.5B.Q8_0.gguf", "weights")
    assert (tmp_path / "calls").read_text() == "x\n"


def test_a_failed_conversion_says_what_the_program_said(tmp_path: Path) -> None:
    """And leaves no file that the next session would take for the model."""
    quantize = _program(tmp_path / "llama-quantize", 'echo half >"$3"; echo planted >&2; exit 3')
    with pytest.raises(NoModel, match=r"(?s)status 3.*planted"):
        q8_0(tmp_path / "m.gguf", quantize, tmp_path)
    assert not (tmp_path / "m.Q8_0.gguf").exists()


def test_the_embedded_model_must_be_installed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An interpreter without it is named, and the command ends before anything is measured."""
    python = _program(tmp_path / "python", "exit 1")
    with pytest.raises(NoModel, match="--gguf"):
        embedded_gguf(python)
    llama = _program(tmp_path / "llama-server", "")
    assert main([f"--warmstart={python}", f"--llama-server={llama}", f"--models={tmp_path}"]) == 2
    assert str(python) in capsys.readouterr().err
