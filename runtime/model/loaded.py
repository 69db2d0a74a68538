"""The dataclass of a transformers model in memory, with its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from runtime.model.tokenizer import Tokenizer


@dataclass(slots=True)
class Loaded:
    """A transformers model in memory, in evaluation mode.

    Args:
        model: the transformers model.
        tokenizer: the model's tokenizer.
        device: torch's name of the model's device.
        dtype: torch's name of the weights' number type.
        revision: the hub's commit; None if the model is not from the hub.
    """

    model: Any
    tokenizer: Tokenizer
    device: str
    dtype: str
    revision: str | None
