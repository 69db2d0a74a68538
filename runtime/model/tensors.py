"""Names and shapes of the tensors that the fast decoder reads.

| name | shape | present |
|---|---|---|
| ``embed`` | [V, H] | always |
| ``positions`` | [P, H] | learned positions; not packed |
| ``token_types`` | [T, H] | ``token_types``; not packed |
| ``relative_bias`` | [B, heads] | ``relative_buckets``; not packed |
| ``embed_norm`` | [H] | ``embedding_norm`` |
| ``{i}.attention_norm`` | [H] | ``pre_norm``, and the layer's ``attention_norm`` |
| ``{i}.qkv`` | [(heads + 2 kv_heads) D, H] | attention layers: rows of the queries, then keys, then values |
| ``{i}.q_norm`` ``{i}.k_norm`` | [heads D], [kv_heads D] | ``qk_norm`` |
| ``{i}.attention_out`` | [H, heads D] | attention layers |
| ``{i}.conv_in`` | [3 H, H] | convolution layers: rows of the input gate B, the output gate C, then x |
| ``{i}.conv`` | [W, H] | convolution layers, oldest position first; not packed |
| ``{i}.conv_out`` | [H, H] | convolution layers |
| ``{i}.attention_post_norm`` | [H] | ``post_norm`` |
| ``{i}.mlp_norm`` | [H] | ``pre_norm`` and not ``shared_norm`` |
| ``{i}.gate_up`` | [2 I, H] | gated; alternately 16 rows of gate and up, I padded to a multiple of 16 |
| ``{i}.up`` | [I, H] | not gated |
| ``{i}.down`` | [H, I] | layers with an MLP or a shared expert, which has these three names, too |
| ``{i}.router`` | [E, H] | layers with experts; not packed |
| ``{i}.router_correction`` | [E] | layers with experts and ``correction``; not packed |
| ``{i}.experts_gate_up`` | [E 2 J, H] | layers with experts: for each in turn the rows of its ``gate_up`` |
| ``{i}.experts_down`` | [E H, J] | layers with experts: for each in turn the rows of its ``down`` |
| ``{i}.shared_gate`` | [H] | layers with experts and ``shared_gate``; not packed |
| ``{i}.mlp_post_norm`` | [H] | ``post_norm`` |
| ``final_norm`` | [H] | ``final_norm`` |
| ``head`` | [V, H] | not tied |

A snapshot whose matrices have types of their own has ``qkv`` and ``gate_up`` in parts: ``{i}.qkv.q``
``{i}.qkv.k`` ``{i}.qkv.v``, and ``{i}.gate_up.gate`` ``{i}.gate_up.up``, each with its own rows of the whole in order.
Their bias is that of the whole. In the same way it has ``{i}.experts_gate_up.gate`` and ``{i}.experts_gate_up.up``,
each [E J, H], one expert after the other.

The rows of each expert, J of gate and of up and H of down, are padded with zeros to a multiple of 16, so that every
expert is whole panels of the packed matrix.

V: vocabulary, H: hidden, I: width of the MLP or of the shared expert (``mlp_width``), J: width of an expert, E: number
of experts, D: padded head width, P: context length, W: convolution width, T: token types, B: buckets. Matrices are
[outputs, inputs]; each may have a ``NAME.bias`` [outputs] in the order of its rows. Norms are stored as ``NAME.weight``
and may have a ``NAME.bias``; a convolution may have a ``conv.bias`` [H].
"""

from __future__ import annotations

from runtime.model.config import DecoderConfig
from runtime.model.packing import padded_rows

Shape = tuple[int, ...]

_PARTS = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up"), "experts_gate_up": ("gate", "up")}


def gate_up_rows(intermediate: int) -> int:
    """Return the number of rows of the gate and up projections together, each padded to whole panels."""
    return 2 * padded_rows(intermediate)


def part_names(name: str) -> tuple[str, ...]:
    """Return the names of the parts of a matrix that a snapshot may have in parts; its own name for any other."""
    parts = _PARTS.get(name.rpartition(".")[2])
    return (name,) if parts is None else tuple(f"{name}.{part}" for part in parts)


def stored_matrices(config: DecoderConfig, *, in_parts: bool) -> dict[str, Shape]:
    """Return the shape [outputs, inputs] of every matrix as a snapshot stores it by name.

    Args:
        config: the decoder's configuration.
        in_parts: whether matrices are stored in parts.
    """
    shapes = matrices(config)
    if not in_parts:
        return shapes
    rows = {"q": config.heads_width, "k": config.kv_width, "v": config.kv_width}
    return {
        part: shape if part == name else (rows.get(part.rpartition(".")[2], shape[0] // 2), shape[1])
        for name, shape in shapes.items()
        for part in part_names(name)
    }


def matrices(config: DecoderConfig) -> dict[str, Shape]:
    """Return the shape [outputs, inputs] of every matrix by name."""
    hidden = config.hidden
    shapes: dict[str, Shape] = {"embed": (config.vocabulary, hidden)}
    for i, layer in enumerate(config.layers):
        if layer.kind == "attention":
            shapes[f"{i}.qkv"] = (config.heads_width + 2 * config.kv_width, hidden)
            shapes[f"{i}.attention_out"] = (hidden, config.heads_width)
        else:
            shapes[f"{i}.conv_in"] = (3 * hidden, hidden)
            shapes[f"{i}.conv_out"] = (hidden, hidden)
        if inner := config.mlp_width(i):
            shapes[f"{i}.{config.up}"] = (gate_up_rows(inner) if config.gated else inner, hidden)
            shapes[f"{i}.down"] = (hidden, inner)
        if layer.experts and config.experts is not None:
            count, width = config.experts.count, config.experts.intermediate
            shapes[f"{i}.experts_gate_up"] = (count * gate_up_rows(width), hidden)
            shapes[f"{i}.experts_down"] = (count * padded_rows(hidden), width)
    if not config.tied:
        shapes["head"] = (config.vocabulary, hidden)
    return shapes


def norms(config: DecoderConfig) -> dict[str, int]:
    """Return the width of every norm by name."""
    found = {"embed_norm": config.hidden} if config.embedding_norm else {}
    for i, layer in enumerate(config.layers):
        if config.pre_norm:
            if layer.attention_norm:
                found[f"{i}.attention_norm"] = config.hidden
            if not config.shared_norm:
                found[f"{i}.mlp_norm"] = config.hidden
        if config.post_norm:
            found[f"{i}.attention_post_norm"] = found[f"{i}.mlp_post_norm"] = config.hidden
        if config.qk_norm != "none" and layer.kind == "attention":
            found[f"{i}.q_norm"], found[f"{i}.k_norm"] = config.heads_width, config.kv_width
    return {**found, "final_norm": config.hidden} if config.final_norm else found


def vectors(config: DecoderConfig) -> dict[str, Shape]:
    """Return the shape of every tensor that is not packed by name, except biases."""
    shapes: dict[str, Shape] = {f"{name}.weight": (width,) for name, width in norms(config).items()}
    if config.learned_positions:
        shapes["positions"] = (config.context_length, config.hidden)
    if config.token_types:
        shapes["token_types"] = (config.token_types, config.hidden)
    if config.relative_buckets:
        shapes["relative_bias"] = (config.relative_buckets, config.heads)
    for i, layer in enumerate(config.layers):
        if layer.kind == "convolution":
            shapes[f"{i}.conv"] = (config.convolution_width, config.hidden)
        if layer.experts and config.experts is not None:
            shapes[f"{i}.router"] = (config.experts.count, config.hidden)
            if config.experts.correction:
                shapes[f"{i}.router_correction"] = (config.experts.count,)
            if config.experts.shared_gate:
                shapes[f"{i}.shared_gate"] = (config.hidden,)
    return shapes


def biases(config: DecoderConfig) -> dict[str, Shape]:
    """Return the shape of every bias that a model may have by name."""
    shapes: dict[str, Shape] = {
        f"{name}.bias": shape[:1] for name, shape in matrices(config).items() if ".experts_" not in name
    }
    shapes |= {f"{name}.bias": (width,) for name, width in norms(config).items()}
    for i, layer in enumerate(config.layers):
        if layer.kind == "convolution":
            shapes[f"{i}.conv.bias"] = (config.hidden,)
    return shapes


def active_parameters(config: DecoderConfig, parameters: int) -> int:
    """Return the number of parameters with which a token is computed: without those of experts that are not chosen.

    Args:
        config: the decoder's configuration.
        parameters: the number of all parameters.
    """
    if config.experts is None:
        return parameters
    layers = sum(layer.experts for layer in config.layers)
    idle = config.experts.count - config.experts.per_token
    return parameters - layers * idle * 3 * config.hidden * config.experts.intermediate
