"""Where a load's time goes."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from runtime.model import load_timer as phases
from runtime.model.load_timer import Phases


def test_phases_add_up_under_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order in which they began; one that fails has taken its time too."""
    ticks = iter([0.0, 1.0, 1.0, 3.0, 3.0, 7.0])
    monkeypatch.setattr(phases.time, "perf_counter", lambda: next(ticks))
    found = Phases()
    with found.phase("b"):
        pass
    with pytest.raises(RuntimeError), found.phase("a"):
        raise RuntimeError
    with found.phase("b"):
        pass
    assert list(found.seconds.items()) == [("b", 5.0), ("a", 2.0)]


def test_a_process_knows_its_age() -> None:
    """It counts from before the interpreter ran, and a child's is less than its parent's."""
    program = "from runtime.model.load_timer import process_age; print(process_age())"
    began = time.perf_counter()
    child = float(subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.PIPE).stdout)
    assert 0 <= child <= time.perf_counter() - began + 0.02
    found = Phases()
    found.imports()
    assert found.seconds["imports"] > child
