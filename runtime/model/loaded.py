"""A transformers model in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from runtime.model.tokenizer import Tokenizer


@dataclass(slots=True)
class Loaded:
    """A transformers model in memory, in evaluation mode.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        device: where it is, as torch names it.
        dtype: of its weights, as torch names it.
        revision: the hub's commit.
    """

    model: Any
    tokenizer: Tokenizer
    device: str
    dtype: str
    revision: str | None
