"""Names and shapes of the tensors that the fast decoder reads, as in the table of ``runtime.loading.convert``."""

from __future__ import annotations

from runtime.model.config import DecoderConfig
from runtime.model.packing import PANEL_ROWS

Shape = tuple[int, ...]


def gate_up_rows(intermediate: int) -> int:
    """Return the number of rows of the gate and up projections together, each padded to whole panels."""
    return 2 * -(-intermediate // PANEL_ROWS) * PANEL_ROWS


def matrices(config: DecoderConfig) -> dict[str, Shape]:
    """Return the shape [outputs, inputs] of every matrix by name; each may have a separate ``.bias`` [outputs]."""
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
    """Return the shape of every tensor that is not packed by name, except the biases of matrices."""
    gpt2 = config.family == "gpt2"
    shapes: dict[str, Shape] = {"positions": (config.context_length, config.hidden)} if gpt2 else {}
    norms = [f"{i}.{name}" for i in range(config.layers) for name in ("attention_norm", "mlp_norm")]
    for norm in [*norms, "final_norm"]:
        shapes[f"{norm}.weight"] = (config.hidden,)
        if gpt2:
            shapes[f"{norm}.bias"] = (config.hidden,)
    return shapes
