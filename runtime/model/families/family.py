"""A model family: how its configuration is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from runtime.model.checkpoint_layout import CheckpointLayout
from runtime.model.config import DecoderConfig
from runtime.model.families.options import Options

Description = tuple[DecoderConfig, CheckpointLayout]


@dataclass(frozen=True, slots=True)
class Family:
    """A model family.

    Args:
        architecture: name of its causal language model's class in transformers.
        read: reads its options.
        defaults: values of options that a ``config.json`` may lack, where they are not None or False.
        renamed: for options with names of their own, the name that most families use for the same.
    """

    architecture: str
    read: Callable[[Options], Description]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)

    def options(self, config: Mapping[str, Any]) -> Options:
        """Return a configuration under the names that most families use, completed with the defaults."""
        named = {self.renamed.get(name, name): value for name, value in config.items()}
        return {"tie_word_embeddings": False, **self.defaults, **named}
