"""Which tensors the fast decoder reads, and in which shapes: the table of ``runtime.loading.convert``, from a
configuration.
"""

from __future__ import annotations

from runtime.model.config import DecoderConfig
from runtime.model.packing import PANEL_ROWS

Shape = tuple[int, ...]


def gate_up_rows(intermediate: int) -> int:
    """Rows of a gate and of what it gates together, each filled up to whole panels."""
    return 2 * -(-intermediate // PANEL_ROWS) * PANEL_ROWS


def matrices(config: DecoderConfig) -> dict[str, Shape]:
    """The shape [outputs, inputs] of every matrix; each may have a ``.bias`` [outputs] beside it."""
    heads, inner = config.heads * config.head_dim, config.intermediate
    up = ("gate_up", gate_up_rows(inner)) if config.family == "llama" else ("up", inner)
    shapes: dict[str, Shape] = {"embed": (config.vocabulary, config.hidden)}
    for i in range(config.layers):
        shapes[f"{i}.qkv"] = (heads + 2 * config.kv_heads * config.head_dim, config.hidden)
        shapes[f"{i}.attention_out"] = (config.hidden, heads)
        shapes[f"{i}.{up[0]}"] = (up[1], config.hidden)
        shapes[f"{i}.down"] = (config.hidden, inner)
    if not config.tied:
        shapes["head"] = (config.vocabulary, config.hidden)
    return shapes


def vectors(config: DecoderConfig) -> dict[str, Shape]:
    """The shape of every tensor that is not packed, biases of matrices left out."""
    gpt2 = config.family == "gpt2"
    shapes: dict[str, Shape] = {"positions": (config.context_length, config.hidden)} if gpt2 else {}
    norms = [f"{i}.{name}" for i in range(config.layers) for name in ("attention_norm", "mlp_norm")]
    for norm in [*norms, "final_norm"]:
        shapes[f"{norm}.weight"] = (config.hidden,)
        if gpt2:
            shapes[f"{norm}.bias"] = (config.hidden,)
    return shapes
