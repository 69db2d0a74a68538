"""loadtests.peers.agreement: how the kernels' log-probabilities differ from llama.cpp's."""

from __future__ import annotations

import numpy as np
import pytest

from loadtests.peers.agreement import differences

LOGITS = np.log(np.array([[4, 2, 1, 1], [1, 1, 1, 5]], np.float32)) + 3


def test_the_same_log_probabilities() -> None:
    """A constant in all logits of a place is no difference."""
    wanted = [{0: np.log(1 / 2), 1: np.log(1 / 4)}, {3: np.log(5 / 8), 0: np.log(1 / 8)}]
    same, behind, rms, most, spread = differences(LOGITS, wanted).split(" | ")
    assert same == "2 of 2"
    assert float(behind) == 0
    assert float(rms) == float(most) == pytest.approx(0, abs=1e-5)
    assert float(spread) == pytest.approx(LOGITS.std(), abs=1e-3)


def test_other_log_probabilities() -> None:
    """Where another token is the most likely one, it is said by how much the wanted one is behind."""
    wanted = [{1: np.log(1 / 4) + 0.3, 0: np.log(1 / 2)}, {3: np.log(5 / 8), 0: np.log(1 / 8) - 0.4}]
    same, behind, rms, most, _ = differences(LOGITS, wanted).split(" | ")
    assert same == "1 of 2"
    assert float(behind) == pytest.approx(np.log(2), abs=1e-4)
    assert float(rms) == pytest.approx(np.sqrt((0.3**2 + 0.4**2) / 4), abs=1e-4)
    assert float(most) == pytest.approx(0.4, abs=1e-4)
