"""The metadata of a model that is loaded from a snapshot."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.loading.model_info import snapshot_info
from runtime.model.catalogue import parse_model_name
from runtime.settings import Settings
from tests.support.engines import snapshot_of
from tests.support.expert_models import EXPERT_CASES
from tests.support.family_models import random_model
from tests.support.models import train_tokenizer


@pytest.mark.parametrize("case", ["mixtral", "qwen3_moe without experts"])
def test_active_parameters_leave_out_idle_experts(case: str, tmp_path: Path) -> None:
    """Of four experts a token has two, in each of two layers; without experts all parameters are active."""
    family, options = EXPERT_CASES[case]
    model = random_model(family, options | {"vocab_size": 600})
    model.save_pretrained(tmp_path)
    train_tokenizer().save_pretrained(tmp_path)
    snapshot = snapshot_of(tmp_path, "float32")
    info = snapshot_info(
        parse_model_name(str(tmp_path)),
        snapshot,
        Settings.load(),
        device="cpu",
        dtype="float32",
        level=None,
        optimizations=(),
        started=0.0,
    )
    assert info.parameters == sum(parameter.numel() for parameter in model.parameters())
    idle = 2 * 2 * 3 * 48 * 72 if case == "mixtral" else 0
    assert info.active_parameters == info.parameters - idle
