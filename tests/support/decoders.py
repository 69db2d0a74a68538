"""Transformers models with random weights, their tensors, and rows to run, without any file."""

from __future__ import annotations

from collections.abc import Sequence as Items
from typing import Any

import torch
from torch import Tensor

from runtime.engine.pytorch.runner import TorchRunner
from runtime.engine.sequence import Row, Sequence
from runtime.loading.convert import convert, with_actual_head
from runtime.loading.snapshot_writer import Weight
from runtime.loading.tensor_source import StateDictSource
from runtime.model.config import DecoderConfig, LayerConfig, Rotation
from runtime.model.families import read_config
from runtime.types import SamplingParams

GREEDY = SamplingParams(max_new_tokens=1, temperature=0)
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
# Variants of the two families: name -> (family, changes to its configuration).
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {}),
    "gpt2-untied": ("gpt2", {"tie_word_embeddings": False, "activation_function": "relu", "n_inner": 100}),
    "llama": ("llama", {}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True, "intermediate_size": 100}),
    "llama-3": ("llama", {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": False, "head_dim": 24}),
    "llama-one-head": ("llama", {"num_key_value_heads": 1, "num_attention_heads": 6, "head_dim": 8}),
}


def model_of(variant: str) -> Any:
    """Return a transformers model with 2 layers and 300 tokens, in float32 and in evaluation mode."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    family, changes = VARIANTS[variant]
    torch.manual_seed(len(variant))
    if family == "gpt2":
        shape: dict[str, Any] = {"n_positions": 256, "n_embd": 48, "n_layer": 2, "n_head": 4}
        # Wide, so that logits differ clearly and a greedy text is not one repeated token.
        model: Any = GPT2LMHeadModel(GPT2Config(**{"vocab_size": 300, "initializer_range": 0.3, **shape, **changes}))
    else:
        shape = {
            "max_position_embeddings": 256,
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
        }
        model = LlamaForCausalLM(LlamaConfig(**{"vocab_size": 300, "initializer_range": 0.3, **shape, **changes}))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # biases are initialised to zero, which would hide one that is ignored
            torch.nn.init.normal_(parameter)
    return model.eval()


def decoder_of(model: Any, dtype: torch.dtype = torch.float32) -> tuple[DecoderConfig, dict[str, Tensor]]:
    """Return a model's configuration and tensors in the decoder's format."""
    config, weights = converted(model)
    return config, {weight.name: torch.tensor(weight.read()).to(dtype) for weight in weights}


def converted(model: Any) -> tuple[DecoderConfig, list[Weight]]:
    """Return a model's configuration and tensors as a serving snapshot gets them."""
    config, layout = read_config(model.config.to_dict())
    source = StateDictSource(model.state_dict())
    config = with_actual_head(config, layout, source)
    return config, convert(config, layout, source)


def embedded_shape(dtype: torch.dtype, layers: int = 2) -> tuple[DecoderConfig, dict[str, Tensor]]:
    """Return the embedded model's shape with few layers, a small vocabulary and random weights."""
    config = DecoderConfig(
        layers=(LayerConfig(rotation=0),) * layers,
        hidden=576,
        intermediate=1536,
        heads=9,
        kv_heads=3,
        head_dim=64,
        vocabulary=512,
        context_length=8192,
        norm="rms",
        norm_epsilon=1e-5,
        activation="silu",
        gated=True,
        tied=True,
        attention_scale=1 / 8,
        rotations=(Rotation(tuple(10_000 ** (-i / 64) for i in range(0, 64, 2))),),
    )
    generator = torch.Generator().manual_seed(3)
    weights = {"embed": torch.randn(512, 576, generator=generator), "final_norm.weight": torch.ones(576)}
    for i in range(layers):
        for name, shape in {
            "qkv": (960, 576),
            "attention_out": (576, 576),
            "gate_up": (3072, 576),
            "down": (576, 1536),
        }.items():
            weights[f"{i}.{name}"] = torch.randn(shape, generator=generator) * shape[1] ** -0.5
        weights |= {f"{i}.{norm}.weight": torch.ones(576) for norm in ("attention_norm", "mlp_norm")}
    return config, {name: weight.to(dtype) for name, weight in weights.items()}


def prompt(seed: int, length: int, vocabulary: int = 300) -> tuple[int, ...]:
    """Return random token ids."""
    return tuple(torch.randint(0, vocabulary, (length,), generator=torch.Generator().manual_seed(seed)).tolist())


def placed(tokens: Items[int], blocks: Items[int], params: SamplingParams = GREEDY) -> Sequence:
    """Return a sequence that has its KV blocks."""
    sequence = Sequence(tuple(tokens), params, seed=0)
    sequence.blocks = list(blocks)
    return sequence


def logits_of(runner: TorchRunner, sequence: Sequence, start: int = 0, chunk: int = 10**6) -> Tensor:
    """Return the [T - start, V] logits after each token of a sequence, computed in chunks."""
    tokens = sequence.tokens
    parts = []
    for first in range(start, len(tokens), chunk):
        part = tokens[first : first + chunk]
        parts.append(runner.forward([Row(sequence, first, part, samples=len(part))])[0].clone())
    return torch.cat(parts)
