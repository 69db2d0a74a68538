"""The GPU check, on a CPU: it says right where things are right, and finds what is planted."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import pytest
import torch

from loadtests.gpu_check import check, table
from runtime.engine.pytorch.runner import TorchRunner

OPTIONS = argparse.Namespace(device="cpu", model="tiny", prompts=3, new_tokens=4)
Fault = Callable[[TorchRunner, list[Any], torch.Tensor], torch.Tensor]


@pytest.mark.parametrize("model", ["tiny", "tiny-experts"])
def test_a_right_runner_passes(model: str) -> None:
    """Every check begins with "right"."""
    results = check(argparse.Namespace(**{**vars(OPTIONS), "model": model}))
    assert len(results) == 3
    assert all(result.startswith("right") for result in results.values())


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("greedy tokens", lambda runner, rows, logits: -logits),
        ("alone and together, float32", lambda runner, rows, logits: logits + 1e-4 * len(rows) * logits),
        ("captured steps, float32", lambda runner, rows, logits: logits + 1e-4 * runner._packer.buckets),
    ],
)
def test_a_wrong_runner_is_found(name: str, fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tokens, rows that depend on each other and captured steps that differ each fail their check."""
    plain = TorchRunner.forward

    def wrong(self: TorchRunner, rows: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        logits, finite = plain(self, rows)
        return fault(self, rows, logits), finite

    monkeypatch.setattr(TorchRunner, "forward", wrong)
    assert check(OPTIONS)[name].startswith("WRONG")


def test_the_table() -> None:
    """One row per way to generate, one column per batch."""
    assert table({"a": {1: 10.4, 16: 100.6}, "b": {1: 5, 16: 6}}).splitlines() == [
        "| tokens per second | 1 | 16 |",
        "|---|---|---|",
        "| a | 10 | 101 |",
        "| b | 5 | 6 |",
    ]
