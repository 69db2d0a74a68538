"""Random weights for any decoder that a ``DecoderConfig`` describes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from runtime.loading.snapshot_writer import Weight, hold
from runtime.model.config import DecoderConfig, LayerConfig, Rotation
from runtime.model.packing import WeightKind
from runtime.model.snapshot import Facts, Snapshot
from runtime.model.tensors import biases, matrices, norms, vectors
from runtime.model.tokenizer import Tokenizer

Tensors = dict[str, NDArray[np.float32]]


def small_config(**changes: Any) -> DecoderConfig:
    """Return the description of a small Llama-like decoder with some fields changed."""
    base = {
        "layers": (LayerConfig(rotation=0),) * 2,
        "hidden": 32,
        "intermediate": 48,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 16,
        "vocabulary": 96,
        "context_length": 128,
        "norm": "rms",
        "norm_epsilon": 1e-5,
        "activation": "silu",
        "gated": True,
        "tied": True,
        "attention_scale": 0.25,
        "rotations": (Rotation(tuple(10_000.0 ** (-i / 16) for i in range(0, 16, 2))),),
    }
    return DecoderConfig(**{**base, **changes})


def random_tensors(config: DecoderConfig, seed: int = 0, *, with_biases: bool = False) -> Tensors:
    """Return random tensors for a decoder, padded as ``runtime.model.tensors`` says.

    Args:
        config: the decoder.
        seed: the random generator's seed.
        with_biases: whether all norms, matrices and convolutions have biases, too.
    """
    random = np.random.default_rng(seed)
    tensors: Tensors = {}
    for name, (rows, columns) in matrices(config).items():
        scale = 1.0 if name == "embed" else 1.0 / math.sqrt(columns)
        tensors[name] = random.normal(0, scale, (rows, columns)).astype(np.float32)
    for name, shape in vectors(config).items():
        mean = 1.0 if name.endswith("norm.weight") else 0.0
        tensors[name] = (mean + 0.3 * random.normal(size=shape)).astype(np.float32)
    if with_biases:
        for name, shape in biases(config).items():
            if config.norm == "layer" or not name.removesuffix(".bias") in norms(config):
                tensors[name] = (0.3 * random.normal(size=shape)).astype(np.float32)
    _clear_padding(tensors, config)
    return tensors


def hold_random(config: DecoderConfig, tensors: Tensors, kind: WeightKind = "float32") -> Snapshot:
    """Return an in-memory snapshot of a decoder with these tensors."""
    packed = matrices(config)

    def weight(name: str, values: NDArray[np.float32]) -> Weight:
        return Weight(name, values.shape, name in packed, lambda: values)

    facts = Facts("random", None, "Random", sum(t.size for t in tensors.values()), kind, config, (0,))
    return hold(facts, Tokenizer(Backend(BPE()), None, {}), [weight(name, values) for name, values in tensors.items()])


def _clear_padding(tensors: Tensors, config: DecoderConfig) -> None:
    """Set what pads heads and the MLP to zero, as in converted checkpoints."""
    true, padded = config.head_dim, config.padded_head_dim
    for name, values in tensors.items():
        part = name.split(".", 1)[-1]
        if part in ("qkv", "qkv.bias") or part.startswith(("q_norm", "k_norm")):
            values.reshape(-1, padded, *values.shape[1:])[:, true:] = 0
        elif part == "attention_out":
            values.reshape(len(values), -1, padded)[..., true:] = 0
        elif part.startswith("gate_up"):
            rows = len(values) // 2
            panels = values.reshape(-1, 2, 16, *values.shape[1:])
            for half in range(2):
                joint = panels[:, half].reshape(rows, *values.shape[1:]).copy()
                joint[config.intermediate :] = 0
                panels[:, half] = joint.reshape(panels[:, half].shape)
