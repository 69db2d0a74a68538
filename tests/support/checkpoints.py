"""Loads model files for the reference engine, and says what they compute or why they are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from runtime.errors import ModelUnavailable
from runtime.loading.loader import load
from runtime.model.catalogue import parse_model_name
from runtime.model.loaded import Loaded


def loaded(path: Path) -> Loaded:
    """Load a folder or file on the processor in float32."""
    return load(parse_model_name(str(path)), "cpu", "float32", lambda stage, share: None)


def logits(model: Any) -> torch.Tensor:
    """Return what a model computes for four tokens."""
    with torch.inference_mode():
        computed: torch.Tensor = model(torch.tensor([[5, 6, 7, 8]])).logits
    return computed


def refusal(path: Path) -> str:
    """Return the message with which a folder or file is refused; it holds no path."""
    with pytest.raises(ModelUnavailable) as caught:
        loaded(path)
    assert str(path.parent) not in caught.value.message
    return caught.value.message
