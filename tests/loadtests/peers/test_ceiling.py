from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from loadtests.peers import ceiling
from loadtests.peers.process import running
from loadtests.service import ROOT, free_port


def test_the_ceiling_stub_is_followed_to_its_last_token(tmp_path: Path) -> None:
    """What the client can take is measured on whole answers, of 64 tokens each."""
    port = free_port()
    command = (sys.executable, "-c", ceiling.STUB, str(port), "64")
    with running(command, {}, ROOT, tmp_path / "log") as child:
        child.until(lambda: asyncio.run(ceiling._listens(port)), 30, "listening")
        tokens, used = asyncio.run(ceiling.load(port, 4, 0.5))
    assert tokens > 0
    assert tokens % 64 == 0
    assert used > 0
