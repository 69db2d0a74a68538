"""Sizes in configurations that would allocate any amount of memory."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.model.size_limits import check_sizes


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"num_hidden_layers": 10_001}, "num_hidden_layers is 10001, which is above the limit of 10000"),
        ({"text_config": {"head_dim": 1e30}}, "head_dim is 1e"),
        ({"llama.attention.head_count": 2**31}, "llama.attention.head_count is 2147483648"),
    ],
)
def test_a_size_above_its_limit_is_named(config: dict[str, Any], field: str) -> None:
    """In a checkpoint's configuration, in one nested in it, and in a GGUF file's metadata."""
    with pytest.raises(ValueError, match=field):
        check_sizes(config)


def test_other_values_pass() -> None:
    """Sizes at their limits, other options, and values of other types."""
    check_sizes({"n_layer": 10_000, "max_position_embeddings": 2**40, "n_head": None, "head_dim": "many"})
