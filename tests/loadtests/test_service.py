from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from loadtests.peers.process import running
from loadtests.service import interrupts_deferred, running_service


@pytest.mark.parametrize("start", ["service", "peer"])
def test_an_interrupt_while_a_process_starts_ends_that_process(
    start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C between the start of the process and the return of Popen leaves no process behind."""
    started: list[subprocess.Popen[bytes]] = []

    class InterruptedPopen(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            started.append(self)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(subprocess, "Popen", InterruptedPopen)
    peer = running(["sleep", "60"], {}, tmp_path, tmp_path / "log")
    with pytest.raises(KeyboardInterrupt), running_service() if start == "service" else peer:
        pytest.fail("the block must not run")
    assert started[0].poll() is not None


def test_the_handlers_are_back_after_the_block() -> None:
    """Without a signal nothing changes."""
    before = signal.getsignal(signal.SIGINT)
    with interrupts_deferred():
        pass
    assert signal.getsignal(signal.SIGINT) is before
