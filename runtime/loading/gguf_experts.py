"""The architectures of GGUF files with mixtures of experts, as additions to ``gguf_architectures``.

What llama.cpp takes for granted is in ``build_moe_ffn`` (``llama-graph.cpp``) and ``src/models`` there: whether the
weights of a token's experts are divided by their sum, and which layers have experts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from runtime.errors import ModelUnavailable
from runtime.loading.gguf_architectures import (
    ARCHITECTURES,
    Architecture,
    Options,
    bias_option,
    lfm2_options,
    llama_biases,
)
from runtime.loading.gguf_config import unsupported
from runtime.model.gguf_header import GGUFHeader

EXPERT_NAMES = {
    "router": "blk.{i}.ffn_gate_inp",
    "router_correction": "blk.{i}.exp_probs_b.bias",
    "experts_gate": "blk.{i}.ffn_gate_exps",
    "experts_up": "blk.{i}.ffn_up_exps",
    "experts_down": "blk.{i}.ffn_down_exps",
    "shared_gate": "blk.{i}.ffn_gate_inp_shexp",
    "shared_expert_gate": "blk.{i}.ffn_gate_shexp",
    "shared_expert_up": "blk.{i}.ffn_up_shexp",
    "shared_expert_down": "blk.{i}.ffn_down_shexp",
}
"""Names of the tensors of experts, by part; that of the correction is whole."""

_SOFTMAX, _SIGMOID = {"expert_gating_func": (1,)}, {"expert_gating_func": (2,)}
_NORMALIZED, _NOT_NORMALIZED = {"expert_weights_norm": (True,)}, {"expert_weights_norm": (False,)}


def _qwen(header: GGUFHeader, options: Options) -> Options:
    """Return the widths of the experts and of the shared expert, which a file need not have."""
    inner, used = options["intermediate_size"], options.get("num_experts_per_tok")
    return {
        "moe_intermediate_size": options.get("moe_intermediate_size") or inner // (used or 1),
        "shared_expert_intermediate_size": options.get("shared_expert_intermediate_size") or inner,
    }


def _ernie(header: GGUFHeader, options: Options) -> Options:
    """Return the number of shared experts, which together are one whose width the file has."""
    width, shared = options["moe_intermediate_size"], options.get("shared_expert_intermediate_size", 0)
    if width < 1 or shared % width:
        raise ModelUnavailable(
            f"the GGUF file has expert_shared_feed_forward_length={shared}, which is not a multiple of "
            f"expert_feed_forward_length={width}: not supported"
        )
    return {
        **bias_option("use_bias")(header, options),
        "moe_num_shared_experts": shared // width,
        "moe_layer_end_index": options["num_hidden_layers"] - 1,
    }


def _keys(count: str, used: str = "num_experts_per_tok", **more: str) -> dict[str, str]:
    """Return the keys that give options, with the names of those for the numbers of experts and of a token's."""
    return {"expert_count": count, "expert_used_count": used, **more}


_WIDTH = {"expert_feed_forward_length": "moe_intermediate_size"}
_SHARED = {"expert_shared_feed_forward_length": "shared_expert_intermediate_size"}
_QWEN = {"hidden_act": "silu", "use_sliding_window": False, "decoder_sparse_step": 1, "mlp_only_layers": []}
_GRANITE = replace(
    ARCHITECTURES["granite"],
    family="granitemoe",
    keys={**ARCHITECTURES["granite"].keys, **_keys("num_local_experts")},
    allowed=_SOFTMAX | _NORMALIZED,
)
# By the value of the key general.architecture; an architecture may have files of several families.
_WITH_EXPERTS = {
    "llama": Architecture(
        "mixtral",
        {"hidden_act": "silu", "sliding_window": None},
        llama_biases,
        _keys("num_local_experts"),
        interleaved=True,
        allowed=_SOFTMAX | _NORMALIZED,
    ),
    "qwen2moe": Architecture(
        "qwen2_moe",
        {**_QWEN, "norm_topk_prob": False},
        _qwen,
        _keys("num_experts", **_WIDTH, **_SHARED),
        allowed=_SOFTMAX | _NOT_NORMALIZED,
    ),
    "qwen3moe": Architecture(
        "qwen3_moe",
        {**_QWEN, "norm_topk_prob": True},
        lambda header, options: {
            **bias_option("attention_bias", "attn_output.bias")(header, options),
            "moe_intermediate_size": _qwen(header, options)["moe_intermediate_size"],
        },
        _keys("num_experts", **_WIDTH),
        allowed=_SOFTMAX | _NORMALIZED,
    ),
    "olmoe": Architecture(
        "olmoe",
        {"hidden_act": "silu", "clip_qkv": None, "norm_topk_prob": False},
        bias_option("attention_bias", "attn_output.bias"),
        _keys("num_experts"),
        allowed=_SOFTMAX | _NOT_NORMALIZED,
    ),
    "granitemoe": _GRANITE,
    "lfm2moe": Architecture(
        "lfm2_moe",
        {"norm_topk_prob": True, "use_expert_bias": True, "routed_scaling_factor": 1.0, "num_dense_layers": 0},
        lfm2_options,
        {
            **ARCHITECTURES["lfm2"].keys,
            **_keys("num_experts", leading_dense_block_count="num_dense_layers", **_WIDTH),
        },
        norm="norm_eps",
        names={"final_norm": "token_embd_norm"},
        allowed=_SIGMOID | _NORMALIZED,
    ),
    "ernie4_5-moe": Architecture(
        "ernie4_5_moe",
        {"hidden_act": "silu", "moe_layer_start_index": 0},
        _ernie,
        _keys(
            "moe_num_experts",
            "moe_k",
            leading_dense_block_count="moe_layer_start_index",
            interleave_moe_layer_step="moe_layer_interval",
            expert_shared_count="moe_num_shared_experts",
            **_WIDTH,
            **_SHARED,
        ),
        interleaved=True,
        allowed=_SOFTMAX | _NORMALIZED,
    ),
}
_WITH_SHARED_EXPERT = {
    "granitemoe": replace(
        _GRANITE,
        family="granitemoeshared",
        keys={**_GRANITE.keys, "expert_shared_feed_forward_length": "shared_intermediate_size"},
    ),
}


def architecture_of(header: GGUFHeader) -> Architecture | None:
    """Return the architecture of a file; None for one that is not known."""
    tables = [ARCHITECTURES]
    if header.of_model("expert_count"):
        tables.insert(0, _WITH_EXPERTS)
        if header.of_model("expert_shared_feed_forward_length"):
            tables.insert(0, _WITH_SHARED_EXPERT)
    return next((table[header.architecture] for table in tables if header.architecture in table), None)


def check_experts(header: GGUFHeader, architecture: Architecture, options: Options) -> None:
    """Check the numbers of a mixture of experts, for which a family would take others for granted.

    Args:
        header: the file's header.
        architecture: the file's architecture.
        options: the options of the file, complete.

    Raises:
        ModelUnavailable: a number is missing or impossible.
    """
    numbers = {
        key: options.get(architecture.keys[key], 0)
        for key in ("expert_count", "expert_used_count", "expert_feed_forward_length")
        if key in architecture.keys
    }
    for key, value in numbers.items():
        if value < 1 or (key == "expert_used_count" and value > numbers["expert_count"]):
            raise unsupported(key, header.of_model(key))


def all_architectures() -> Iterator[tuple[str, Architecture]]:
    """Yield each known architecture with its name, which those with and without experts may share."""
    for table in (ARCHITECTURES, _WITH_EXPERTS, _WITH_SHARED_EXPERT):
        yield from table.items()
