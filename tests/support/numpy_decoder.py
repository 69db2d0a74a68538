"""The decoder that a ``DecoderConfig`` describes, in a few lines of NumPy: the reference for all implementations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from runtime.model.config import DecoderConfig

Array = NDArray[np.float32]

_ERF = np.vectorize(math.erf, otypes=[np.float64])


def logits(config: DecoderConfig, tensors: Mapping[str, Array], ids: Sequence[int]) -> Array:
    """Return the logits [T, V] of a text's tokens.

    Args:
        config: the decoder's configuration.
        tensors: the weights by their names in ``runtime.model.tensors``.
        ids: the token ids [T].
    """
    return _Forward(config, tensors, len(ids)).logits(np.array(ids))


class _Forward:
    """One pass over a text. T: tokens, H: width of the residual stream, D: padded width of a head."""

    def __init__(self, config: DecoderConfig, tensors: Mapping[str, Array], length: int) -> None:
        self.config = config
        self.tensors = tensors
        self.positions = np.arange(length)

    def logits(self, ids: NDArray[np.int64]) -> Array:
        config = self.config
        x = self.tensors["embed"][ids] * np.float32(config.embedding_scale)  # [T, H]
        if config.learned_positions:
            x = x + self.tensors["positions"][self.positions]
        if config.embedding_norm:
            x = self.norm("embed_norm", x)
        for i in range(len(config.layers)):
            x = self.layer(i, x)
        scores = self.product("embed" if config.tied else "head", self.norm("final_norm", x)) * config.logit_scale
        cap = config.logit_softcap
        return (cap * np.tanh(scores / cap) if cap else scores).astype(np.float32)

    def layer(self, i: int, x: Array) -> Array:
        config = self.config
        mix = self.attention if config.layers[i].kind == "attention" else self.convolution
        normed = self.norm(f"{i}.attention_norm", x) if config.pre_norm else x
        mixed = self.added(f"{i}.attention_post_norm", mix(i, normed))
        y = x if config.parallel else x + mixed
        if not config.shared_norm:
            normed = self.norm(f"{i}.mlp_norm", y) if config.pre_norm else y
        inner = self.experts(i, normed) if config.layers[i].experts else self.mlp(i, normed)
        inner = self.added(f"{i}.mlp_post_norm", inner)
        return x + mixed + inner if config.parallel else y + inner

    def added(self, name: str, x: Array) -> Array:
        """What a part adds to the residual stream."""
        return (self.norm(name, x) if self.config.post_norm else x) * np.float32(self.config.residual_scale)

    def attention(self, i: int, x: Array) -> Array:
        config, layer, width = self.config, self.config.layers[i], self.config.padded_head_dim
        qkv = self.product(f"{i}.qkv", x).reshape(len(x), -1, width)
        q, k, v = np.split(qkv, [config.heads, config.heads + config.kv_heads], axis=1)  # [T, heads, D]
        if config.qk_norm != "none":
            q, k = self.head_norm(f"{i}.q_norm", q), self.head_norm(f"{i}.k_norm", k)
        q, k = self.rotated(q, layer.rotation), self.rotated(k, layer.rotation)
        ahead = self.positions[None] - self.positions[:, None]  # [T, T], of the key before the query: negative
        hidden = (ahead > 0) | ((ahead <= -layer.window) if layer.window else False)
        out = np.zeros_like(q)
        for head in range(config.heads):
            shared = head // (config.heads // config.kv_heads)
            scores = q[:, head] @ k[:, shared].T * config.attention_scale
            if cap := config.attention_softcap:
                scores = cap * np.tanh(scores / cap)
            if config.alibi_slopes:
                scores = scores + config.alibi_slopes[head] * self.positions
            scores = np.where(hidden, -np.inf, scores)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            out[:, head] = weights / weights.sum(-1, keepdims=True) @ v[:, shared]
        return self.product(f"{i}.attention_out", out.reshape(len(x), -1))

    def rotated(self, heads: Array, index: int | None) -> Array:
        """Rotate the first values of each head [T, heads, D], value i together with value i + n."""
        if index is None:
            return heads
        rotation = self.config.rotations[index]
        n = len(rotation.frequencies)
        long_text = 0 < rotation.short_context < len(self.positions)
        frequencies = rotation.long_frequencies if long_text else rotation.frequencies
        angles = self.positions[:, None, None] * np.array(frequencies)
        cos, sin = np.cos(angles) * rotation.factor, np.sin(angles) * rotation.factor
        a, b, rest = heads[..., :n], heads[..., n : 2 * n], heads[..., 2 * n :]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], -1).astype(np.float32)

    def convolution(self, i: int, x: Array) -> Array:
        config = self.config
        gate_in, gate_out, values = np.split(self.product(f"{i}.conv_in", x), 3, axis=-1)
        gated = np.pad(gate_in * values, [(config.convolution_width - 1, 0), (0, 0)])
        mixed = sum(gated[j : j + len(x)] * tap for j, tap in enumerate(self.tensors[f"{i}.conv"]))
        mixed = mixed + self.tensors.get(f"{i}.conv.bias", np.float32(0))
        return self.product(f"{i}.conv_out", gate_out * mixed)

    def mlp(self, i: int, x: Array) -> Array:
        if not self.config.gated:
            return self.product(f"{i}.down", self.activation(self.product(f"{i}.up", x)))
        return self.product(f"{i}.down", self.gated(self.product(f"{i}.gate_up", x), self.config.mlp_width(i)))

    def gated(self, both: Array, width: int) -> Array:
        panels = both.reshape(len(both), -1, 2, 16)  # alternately of gate and up
        return (self.activation(panels[:, :, 0]) * panels[:, :, 1]).reshape(len(both), -1)[:, :width]

    def experts(self, i: int, x: Array) -> Array:
        config = self.config.experts
        assert config is not None
        scores = x @ self.tensors[f"{i}.router"].T  # [T, E]
        if config.scores == "softmax":
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            scores = scores / scores.sum(-1, keepdims=True)
        else:
            scores = 1 / (1 + np.exp(-scores))
        ranked = scores + self.tensors.get(f"{i}.router_correction", np.float32(0))
        chosen = np.argsort(-ranked, -1, kind="stable")[:, : config.per_token]
        weights = np.zeros_like(scores)
        np.put_along_axis(weights, chosen, np.take_along_axis(scores, chosen, -1), -1)
        if config.normalized:
            weights = weights / weights.sum(-1, keepdims=True)
        ups = np.split(self.tensors[f"{i}.experts_gate_up"], config.count)
        downs = np.split(self.tensors[f"{i}.experts_down"], config.count)
        out = np.zeros_like(x)
        for expert, (up, down) in enumerate(zip(ups, downs, strict=True)):
            inner = self.gated(x @ up.T, config.intermediate)
            out += weights[:, expert, None] * config.scale * (inner @ down.T)[:, : out.shape[1]]
        if config.shared_intermediate:
            gate = self.tensors.get(f"{i}.shared_gate")
            share = np.float32(1) if gate is None else 1 / (1 + np.exp(-(x @ gate)))[:, None]
            out = out + share * self.mlp(i, x)
        return out.astype(np.float32)

    def activation(self, x: Array) -> Array:
        if self.config.activation == "silu":
            return x / (1 + np.exp(-x))
        if self.config.activation == "gelu":
            return (0.5 * x * (1 + _ERF(x / math.sqrt(2)))).astype(np.float32)
        if self.config.activation == "gelu_tanh":
            return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        positive: Array = np.maximum(x, 0)
        return positive if self.config.activation == "relu" else positive * positive

    def product(self, name: str, x: Array) -> Array:
        result: Array = x @ self.tensors[name].T + self.tensors.get(f"{name}.bias", np.float32(0))
        return result

    def head_norm(self, name: str, heads: Array) -> Array:
        """Normalize [T, heads, D] by head or over all heads; the padding does not count."""
        real = heads[..., : self.config.head_dim]
        by_head = self.config.qk_norm == "head"
        scaled = self.scaled(real if by_head else real.reshape(len(real), -1)).reshape(real.shape)
        padded = np.pad(scaled, [(0, 0), (0, 0), (0, heads.shape[-1] - real.shape[-1])])
        return self.weighted(name, padded.reshape(len(real), -1)).reshape(heads.shape)

    def norm(self, name: str, x: Array) -> Array:
        return self.weighted(name, self.scaled(x))

    def scaled(self, x: Array) -> Array:
        if self.config.norm == "layer":
            x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(self.config.norm_epsilon))

    def weighted(self, name: str, x: Array) -> Array:
        result: Array = x * self.tensors[f"{name}.weight"] + self.tensors.get(f"{name}.bias", np.float32(0))
        return result
