"""Descriptions of small decoders that cover every field of ``DecoderConfig``, and random weights for them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from runtime.model.config import DecoderConfig, ExpertsConfig, LayerConfig, Rotation
from runtime.model.tensors import biases, matrices, vectors


def rotation(pairs: int, base: float = 10_000.0, factor: float = 1.0) -> Rotation:
    """Return a rotation of the first ``2 * pairs`` values of a head."""
    return Rotation(tuple(base ** (-i / pairs) for i in range(pairs)), factor)


def describe(*layers: LayerConfig, **changes: Any) -> DecoderConfig:
    """Return the description of a small Llama with these layers and changes."""
    shape: dict[str, Any] = {
        "layers": layers or (ROTATED, ROTATED),
        "hidden": 48,
        "intermediate": 96,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 16,
        "vocabulary": 300,
        "context_length": 1024,
        "norm": "rms",
        "norm_epsilon": 1e-5,
        "activation": "silu",
        "gated": True,
        "tied": True,
        "attention_scale": 0.25,
        "rotations": (rotation(8),),
    }
    return DecoderConfig(**(shape | changes))


PLAIN, ROTATED, CONVOLUTION = LayerConfig(), LayerConfig(rotation=0), LayerConfig("convolution")
EXPERTS = LayerConfig(rotation=0, experts=True)
LAYER: dict[str, Any] = {"norm": "layer"}
UNROTATED: dict[str, Any] = {"rotations": ()}
SANDWICH: dict[str, Any] = {"post_norm": True}
AFTER: dict[str, Any] = {"pre_norm": False, "post_norm": True}
PARALLEL: dict[str, Any] = {"parallel": True}
ONE_NORM: dict[str, Any] = {"parallel": True, "shared_norm": True}
GPT2: dict[str, Any] = {"kv_heads": 4, "gated": False, "activation": "gelu_tanh", **LAYER, **UNROTATED}
NO_BIAS, QKV, NORM, ATTENTION, MLP, HEAD = "^$", "qkv", "norm", "qkv|attention_out", "up|down", "^head|^embed"


def _descriptions() -> Iterator[tuple[str, DecoderConfig, str]]:
    """Yield the name of a family or of a feature, a description, and a pattern of the tensors that have a bias."""
    local = LayerConfig(window=5, rotation=1)
    yield "llama", describe(), NO_BIAS
    yield "llama-biases", describe(intermediate=100, tied=False), f"{ATTENTION}|{MLP}"
    yield "llama-yarn", describe(rotations=(rotation(8, factor=1.2),), attention_scale=0.3), f"{NORM}|{HEAD}"
    long = replace(rotation(8, factor=1.1), long_frequencies=rotation(8, 50.0).frequencies, short_context=100)
    yield "phi3-longrope", describe(rotations=(long,)), NO_BIAS
    yield "gpt2", describe(PLAIN, PLAIN, **GPT2, learned_positions=True), f"{NORM}|{ATTENTION}|{MLP}"
    yield "mistral", describe(*[LayerConfig(window=40, rotation=0)] * 2, tied=False), NO_BIAS
    yield "qwen2", describe(heads=6, kv_heads=1), QKV
    yield "qwen3", describe(head_dim=24, rotations=(rotation(12),), qk_norm="head"), NO_BIAS
    yield "gemma", describe(activation="gelu_tanh", embedding_scale=48**0.5, head_dim=32, kv_heads=1), NO_BIAS
    yield (
        "gemma2",
        describe(
            LayerConfig(window=33, rotation=0),
            ROTATED,
            activation="gelu_tanh",
            attention_softcap=1.5,
            logit_softcap=5.0,
            embedding_scale=48**0.5,
            attention_scale=0.4,
            **SANDWICH,
        ),
        NO_BIAS,
    )
    yield (
        "gemma3",
        describe(
            local,
            LayerConfig(window=130, rotation=1),
            ROTATED,
            rotations=(rotation(8, 1e6), rotation(8)),
            activation="gelu_tanh",
            qk_norm="head",
            **SANDWICH,
        ),
        NO_BIAS,
    )
    yield "smollm3", describe(ROTATED, PLAIN, ROTATED), NO_BIAS
    yield "granite", describe(embedding_scale=3.0, residual_scale=0.4, logit_scale=0.25), NO_BIAS
    yield "olmo", describe(**LAYER), NO_BIAS
    yield "olmo2", describe(head_dim=12, rotations=(rotation(6),), qk_norm="full", **AFTER), NO_BIAS
    yield (
        "gpt_neox",
        describe(gated=False, activation="gelu", rotations=(rotation(2),), tied=False, **LAYER, **PARALLEL),
        f"{NORM}|{ATTENTION}|{MLP}",
    )
    yield (
        "phi",
        describe(gated=False, activation="gelu_tanh", rotations=(rotation(4),), tied=False, **LAYER, **ONE_NORM),
        f"{NORM}|{ATTENTION}|{MLP}|{HEAD}",
    )
    yield "stablelm", describe(head_dim=20, rotations=(rotation(3),), qk_norm="head", **LAYER, **PARALLEL), NORM
    yield "cohere", describe(qk_norm="full", head_dim=20, logit_scale=0.5, **LAYER, **ONE_NORM), NO_BIAS
    slopes = (0.5, 0.25, 0.125, 0.0625)
    yield (
        "bloom",
        describe(PLAIN, PLAIN, **GPT2, alibi_slopes=slopes, embedding_norm=True),
        f"{NORM}|{ATTENTION}|{MLP}",
    )
    yield "falcon", describe(gated=False, activation="gelu", kv_heads=1, **LAYER, **ONE_NORM), NORM
    yield (
        "opt",
        describe(PLAIN, PLAIN, **(GPT2 | {"activation": "relu"}), learned_positions=True),
        f"{NORM}|{ATTENTION}|{MLP}",
    )
    yield "nemotron", describe(gated=False, activation="relu2", rotations=(rotation(4),), **LAYER), NORM
    yield (
        "exaone4",
        describe(LayerConfig(window=20, rotation=0), PLAIN, qk_norm="head", activation="silu", **AFTER),
        NO_BIAS,
    )
    yield "lfm2", describe(CONVOLUTION, ROTATED, CONVOLUTION, qk_norm="head", convolution_width=3), NO_BIAS
    yield "lfm2-biases", describe(CONVOLUTION, CONVOLUTION, ROTATED, convolution_width=4), "conv|qkv"
    mixture = ExpertsConfig(count=8, per_token=2, intermediate=64, normalized=True)
    yield "mixtral", describe(EXPERTS, EXPERTS, experts=mixture, tied=False), NO_BIAS
    shared = {"count": 12, "per_token": 4, "shared_intermediate": 80}
    yield (
        "qwen2_moe",
        describe(ROTATED, EXPERTS, experts=ExpertsConfig(intermediate=32, **shared, shared_gate=True)),
        QKV,
    )
    sigmoid = ExpertsConfig(20, 3, 48, scores="sigmoid", normalized=True, scale=1.5, correction=True)
    convolution = replace(CONVOLUTION, experts=True)
    yield (
        "lfm2_moe",
        describe(CONVOLUTION, convolution, EXPERTS, qk_norm="head", convolution_width=3, experts=sigmoid),
        NO_BIAS,
    )
    every = ExpertsConfig(5, 5, 37, scores="sigmoid", scale=0.3, shared_intermediate=21)
    yield (
        "odd-experts",
        describe(EXPERTS, ROTATED, EXPERTS, hidden=42, intermediate=37, residual_scale=0.7, experts=every, **SANDWICH),
        ".",
    )
    yield (
        "odd",
        describe(
            LayerConfig(window=17),
            LayerConfig(window=50, rotation=0),
            PLAIN,
            hidden=42,
            intermediate=37,
            heads=6,
            kv_heads=3,
            head_dim=10,
            rotations=(rotation(3),),
            alibi_slopes=(0.5, 0.4, 0.3, 0.2, 0.1, 0.05),
            attention_softcap=2.0,
            activation="gelu",
            vocabulary=301,
            embedding_norm=True,
            residual_scale=0.7,
            qk_norm="full",
            **LAYER,
            **PARALLEL,
            **SANDWICH,
        ),
        ".",
    )


DESCRIPTIONS = {name: (config, biased) for name, config, biased in _descriptions()}


def random_weights(config: DecoderConfig, biased: str = "^$", seed: int = 0) -> dict[str, Tensor]:
    """Return random float32 tensors for a description, with zeros where heads and the MLP are padded.

    Args:
        config: the description.
        biased: pattern of the names, without ``.bias``, of the matrices, norms and convolutions that have a bias.
        seed: seed of the values.
    """
    generator = torch.Generator().manual_seed(seed)

    def random(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=generator)

    weights = {}
    for name, shape in matrices(config).items():
        weights[name] = random(shape) * (0.3 if name == "embed" else shape[1] ** -0.5)
    for name, shape in vectors(config).items():
        weights[name] = 1 + 0.3 * random(shape) if name.endswith("norm.weight") else 0.5 * random(shape)
    for name, shape in biases(config).items():
        if re.search(biased, name.removesuffix(".bias")):
            weights[name] = 0.3 * random(shape)
    for name, weight in weights.items():
        part = name.removesuffix(".weight").removesuffix(".bias").partition(".")[2]
        if part in ("qkv", "q_norm", "k_norm"):
            weight.view(-1, config.padded_head_dim, *weight.shape[1:])[:, config.head_dim :] = 0
        if part == "attention_out" and weight.ndim == 2:
            weight.view(config.hidden, -1, config.padded_head_dim)[..., config.head_dim :] = 0
        if part == "gate_up":
            _clear_padding(weight.view(1, -1, 2, 16, *weight.shape[1:]), config.mlp_width(int(name.partition(".")[0])))
        if part == "experts_gate_up" and config.experts is not None:
            panels = weight.view(config.experts.count, -1, 2, 16, *weight.shape[1:])
            _clear_padding(panels, config.experts.intermediate)
        if part == "experts_down" and config.experts is not None:
            weight.view(config.experts.count, -1, *weight.shape[1:])[:, config.hidden :] = 0
    return weights


def _clear_padding(panels: Tensor, width: int) -> None:
    """Set the rows that pad gate and up to zero. Panels: [experts, rows / 16, gate or up, 16, ...]."""
    for panel in range(panels.shape[1]):
        panels[:, panel, :, max(0, width - 16 * panel) :] = 0


def random_decoder(name: str, dtype: torch.dtype = torch.float32) -> tuple[DecoderConfig, dict[str, Tensor]]:
    """Return one of ``DESCRIPTIONS`` and random weights for it."""
    config, biased = DESCRIPTIONS[name]
    return config, {key: weight.to(dtype) for key, weight in random_weights(config, biased).items()}
