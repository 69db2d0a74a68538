"""Limits of the sizes that a model's configuration names, because memory is allocated by them before weights are read.

The largest published models have a few hundred layers and a width of some 20,000.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_MAX_LAYERS, _MAX_HEADS, _MAX_HEAD_WIDTH, _MAX_WIDTH = 10_000, 10_000, 100_000, 10_000_000

_LIMITS = {
    # the names in a config.json, then those in a GGUF file's metadata
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "block_count"), _MAX_LAYERS),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "n_head", "n_heads", "head_count"), _MAX_HEADS),
    **dict.fromkeys(("head_count_kv", "expert_count", "num_experts", "num_local_experts"), _MAX_HEADS),
    **dict.fromkeys(("n_routed_experts", "moe_num_experts", "num_experts_per_tok", "moe_k"), _MAX_HEADS),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"), _MAX_HEADS),
    **dict.fromkeys(("expert_used_count", "expert_shared_count", "leading_dense_block_count"), _MAX_HEADS),
    **dict.fromkeys(("head_dim", "rotary_dim", "key_length", "value_length", "dimension_count"), _MAX_HEAD_WIDTH),
    **dict.fromkeys(("hidden_size", "n_embd", "embedding_length", "intermediate_size", "n_inner"), _MAX_WIDTH),
    **dict.fromkeys(("feed_forward_length", "ffn_dim", "word_embed_proj_dim"), _MAX_WIDTH),
    **dict.fromkeys(
        ("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"), _MAX_WIDTH
    ),
    **dict.fromkeys(("expert_feed_forward_length", "expert_shared_feed_forward_length"), _MAX_WIDTH),
}


def check_sizes(config: Mapping[Any, Any]) -> None:
    """Check the sizes in a ``config.json``, its nested configurations included, or in a GGUF file's metadata.

    Raises:
        ValueError: one is above its limit; the message names both.
    """
    for key, value in config.items():
        if isinstance(value, Mapping):
            check_sizes(value)
        limit = _LIMITS.get(str(key).rpartition(".")[2])
        if limit is not None and isinstance(value, int | float) and value > limit:
            raise ValueError(f"{key} is {value}, which is above the limit of {limit}")
