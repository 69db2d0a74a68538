"""Reads the options that many families' configurations have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from runtime.model.config import Activation, DecoderConfig, LayerConfig, Rotation, UnsupportedDecoder
from runtime.model.families.rotary import rope_parameters, rotation

Options = Mapping[str, Any]
"""The content of a ``config.json``, completed with the family's defaults."""

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}


def activation(name: str) -> Activation:
    """Return the activation function that transformers has under a name.

    Raises:
        UnsupportedDecoder: it is another one.
    """
    if name not in _ACTIVATIONS:
        raise UnsupportedDecoder(f"activation {name}")
    return _ACTIVATIONS[name]


def require(options: Options, **wanted: Any) -> None:
    """Refuse options with other values than these; None and an absent option count as False and 0.

    Raises:
        UnsupportedDecoder: an option has another value; the message names it.
    """
    for name, value in wanted.items():
        given = options.get(name)
        if (given or 0) != (value or 0):
            raise UnsupportedDecoder(f"{name}={given}")


def alibi_slopes(heads: int) -> tuple[float, ...]:
    """Return ALiBi's slopes (arXiv:2108.12409, section 3), for numbers of heads that are no power of two, too."""

    def powers(count: int) -> list[float]:
        base = 2 ** -(8 / count)
        return [base ** (i + 1) for i in range(count)]

    whole = 2 ** (heads.bit_length() - 1)
    return tuple(powers(whole) + powers(2 * whole)[::2][: heads - whole])


def head_width(options: Options) -> int:
    """Return the width of one head."""
    width: int = options.get("head_dim") or options["hidden_size"] // options["num_attention_heads"]
    return width


def windows(options: Options, default: Sequence[str] | None = None) -> list[int]:
    """Return each layer's attention window, from ``layer_types`` and ``sliding_window``.

    Args:
        options: the configuration.
        default: the layers' types if the configuration does not name them; None for full attention in all.

    Raises:
        UnsupportedDecoder: a layer is of another type.
    """
    count = options["num_hidden_layers"]
    types = options.get("layer_types") or default or ["full_attention"] * count
    if other := set(types) - {"full_attention", "sliding_attention"}:
        raise UnsupportedDecoder(f"layers of type {min(map(str, other))}")
    if len(types) != count:
        raise ValueError(f"{len(types)} layer types for {count} layers")
    return [options["sliding_window"] if kind == "sliding_attention" else 0 for kind in types]


def alternating(options: Options, pattern: int) -> list[str]:
    """Return the layers' types where every ``pattern``-th has full attention and the others a sliding window."""
    count = options["num_hidden_layers"]
    return ["sliding_attention" if (i + 1) % pattern else "full_attention" for i in range(count)]


def one_rotation(options: Options, *, theta: float = 10_000.0, part: float | None = None) -> Rotation:
    """Return the rotary embedding of a model that has the same in all layers. Arguments as for ``rope_parameters``."""
    rope = rope_parameters(options, theta=theta, part=part)
    return rotation(rope, head_width(options), options["max_position_embeddings"])


def decoder(options: Options, **fields: Any) -> DecoderConfig:
    """Return a decoder's configuration from the options that most families have, and the fields that differ.

    Args:
        options: the configuration.
        fields: fields of ``DecoderConfig``. Instead of ``layers``, ``windows`` gives each layer's window, and
            ``rotated`` whether it uses the first rotation; by default all do.
    """
    heads, head_dim = options["num_attention_heads"], head_width(options)
    rotations = fields.get("rotations", ())
    layer_windows = fields.pop("windows", None) or [0] * options["num_hidden_layers"]
    rotated = fields.pop("rotated", [bool(rotations)] * len(layer_windows))
    context = options.get("max_position_embeddings") or 0
    layers = tuple(
        LayerConfig(window=window if window < context else 0, rotation=0 if with_rotation else None)
        for window, with_rotation in zip(layer_windows, rotated, strict=True)
    )
    common = {
        "layers": layers,
        "hidden": options["hidden_size"],
        "intermediate": options.get("intermediate_size"),
        "heads": heads,
        "kv_heads": options.get("num_key_value_heads") or heads,
        "head_dim": head_dim,
        "vocabulary": options["vocab_size"],
        "context_length": options.get("max_position_embeddings"),
        "tied": bool(options["tie_word_embeddings"]),
        "attention_scale": head_dim**-0.5,
    }
    return checked(DecoderConfig(**{**common, **fields}))


def checked(config: DecoderConfig) -> DecoderConfig:
    """Return a configuration after checking that its numbers are possible.

    Raises:
        ValueError: one is not.
    """
    sizes = ("hidden", "intermediate", "heads", "kv_heads", "head_dim", "vocabulary", "context_length")
    for name in sizes:
        value = getattr(config, name)
        if type(value) is not int or value < 1:
            raise ValueError(f"{name} is {value!r}")
    if not config.layers or config.heads % config.kv_heads:
        raise ValueError(f"{len(config.layers)} layers, {config.heads} heads and {config.kv_heads} key heads")
    if any(type(layer.window) is not int or layer.window < 0 for layer in config.layers):
        raise ValueError("a sliding window is not a number of tokens")
    return config
