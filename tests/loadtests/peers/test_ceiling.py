from __future__ import annotations

import sys
from pathlib import Path

import pytest

from loadtests.peers import ceiling
from loadtests.peers.load import GENERATOR, run_stage
from loadtests.peers.process import running
from loadtests.service import ROOT, free_port


def test_the_ceiling_stub_is_followed_to_its_last_token(tmp_path: Path) -> None:
    """What the generator can take is measured on whole answers, of 64 tokens each."""
    if not GENERATOR.exists():
        pytest.skip("NO LOAD WAS PUT ON THE STUB: locust is missing; run: make .venv-load/.done")
    port = free_port()
    command = (sys.executable, "-c", ceiling.STUB, str(port), "64")
    with running(command, {}, ROOT, tmp_path / "log") as child:
        child.until(lambda: ceiling.listens(port), 30, "listening")
        stage = run_stage(port, 4, 1.0, 0, None, child)
    assert stage.tokens_per_answer in (64, None)  # None: this machine was too busy for one in time
    assert stage.failures == 0
    assert stage.client_cpu > 0
