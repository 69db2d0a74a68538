"""What the families with mixtures of experts have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from runtime.model.checkpoint_layout import CheckpointLayout
from runtime.model.config import DecoderConfig, ExpertsConfig, UnsupportedDecoder
from runtime.model.families.llama import layout
from runtime.model.families.options import Options

SHARED = ("shared_expert_gate", "shared_expert_up", "shared_expert_down")


def with_experts(config: DecoderConfig, experts: ExpertsConfig, sparse: Sequence[bool] | None = None) -> DecoderConfig:
    """Return a decoder with mixtures of experts.

    Args:
        config: the decoder without them.
        experts: the mixture of experts.
        sparse: whether each layer has one; None if all do.

    Raises:
        ValueError: a number is not possible.
    """
    sizes = {name: getattr(experts, name) for name in ("count", "per_token", "intermediate", "shared_intermediate")}
    for name, value in sizes.items():
        if type(value) is not int or value < (0 if name == "shared_intermediate" else 1):
            raise ValueError(f"{name} of the experts is {value!r}")
    if experts.per_token > experts.count:
        raise ValueError(f"{experts.per_token} experts for a token, of {experts.count}")
    given = [True] * len(config.layers) if sparse is None else sparse
    layers = tuple(
        replace(layer, experts=bool(has_experts)) for layer, has_experts in zip(config.layers, given, strict=True)
    )
    return replace(config, layers=layers, experts=experts if any(given) else None)


def expert_layout(
    block: str = "mlp",
    names: Mapping[str, str] | None = None,
    *,
    matrices: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
    in_memory: str = "",
    shared: str = "",
    correction: str = "",
    **fields: Any,
) -> CheckpointLayout:
    """Return a layout of checkpoints that are named as Llama's, with experts that have tensors of their own.

    Args:
        block: name of a layer's mixture of experts.
        names: names of other parts that differ from Llama's.
        matrices: names of an expert's gate, up and down projections.
        in_memory: name of the mixture of experts in transformers' models, which have all experts in one tensor; empty
            for the same.
        shared: name of the shared expert in ``block``; empty for none.
        correction: name of the router's correction in ``block``; empty for none.
        fields: further arguments of ``llama.layout``.
    """
    module, stack = f"layers.{{i}}.{block}", f"layers.{{i}}.{in_memory or block}.experts"
    own = {"router": f"{module}.gate"}
    own |= {
        f"experts_{part}": f"{module}.experts.{{e}}.{name}"
        for part, name in zip(("gate", "up", "down"), matrices, strict=True)
    }
    if shared:
        own |= {part: f"{module}.{shared}.{name}" for part, name in zip(SHARED, matrices, strict=True)}
    if correction:
        own["router_correction"] = f"{module}.{correction}"
    stacked = {"experts_gate_up": f"{stack}.gate_up_proj", "experts_down": f"{stack}.down_proj"}
    return layout({**own, **(names or {})}, plain=frozenset({"router_correction"}), stacked=stacked, **fields)


def sparse_layers(options: Options) -> list[bool]:
    """Return whether each layer has experts, from the types of the layers' MLPs.

    Raises:
        UnsupportedDecoder: a layer is of another type.
    """
    types = options["mlp_layer_types"]
    if other := set(types) - {"dense", "sparse"}:
        raise UnsupportedDecoder(f"MLPs of type {min(map(str, other))}")
    return [kind == "sparse" for kind in types]
