"""A reference for decoders: what ``DecoderConfig`` describes, written out for one sequence with whole matrices.

It has no cache, no batches and no padding, computes in float64, and shares no code with the engines.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from runtime.model.config import DecoderConfig, LayerConfig, Rotation


class DenseDecoder:
    """Computes logits of one sequence at a time.

    Args:
        config: the description.
        weights: tensors named as in ``runtime.model.tensors``.
    """

    def __init__(self, config: DecoderConfig, weights: Mapping[str, Tensor]) -> None:
        self.config = config
        self.weights = {name: weight.double() for name, weight in weights.items()}

    def logits(self, tokens: Sequence[int]) -> Tensor:
        """Return the float32 logits [T, V] after each of the tokens."""
        c, w = self.config, self.weights
        x = w["embed"][list(tokens)] * c.embedding_scale  # [T, H]
        if c.learned_positions:
            x = x + w["positions"][: len(tokens)]
        if c.embedding_norm:
            x = self.norm(x, "embed_norm")
        for i, layer in enumerate(c.layers):
            before = self.norm(x, f"{i}.attention_norm") if c.pre_norm else x
            mixed = self.attention(before, i, layer) if layer.kind == "attention" else self.convolution(before, i)
            if c.post_norm:
                mixed = self.norm(mixed, f"{i}.attention_post_norm")
            after = x + c.residual_scale * mixed
            source = x if c.parallel else after
            if not c.shared_norm:
                before = self.norm(source, f"{i}.mlp_norm") if c.pre_norm else source
            out = self.experts(before, i) if layer.experts else self.mlp(before, i)
            if c.post_norm:
                out = self.norm(out, f"{i}.mlp_post_norm")
            x = after + c.residual_scale * out
        logits = self.linear(self.norm(x, "final_norm"), "embed" if c.tied else "head") * c.logit_scale
        return (c.logit_softcap * torch.tanh(logits / c.logit_softcap) if c.logit_softcap else logits).float()

    def greedy(self, tokens: Sequence[int], count: int, end: int) -> list[int]:
        """Return the tokens that greedy generation adds: at most ``count``, none after the end token."""
        text = list(tokens)
        while len(text) < len(tokens) + count and end not in text[len(tokens) :]:
            text.append(int(self.logits(text)[-1].argmax()))
        return text[len(tokens) :]

    def norm(self, x: Tensor, name: str) -> Tensor:
        weight = self.weights[f"{name}.weight"]
        bias = self.weights.get(f"{name}.bias", torch.zeros(()))
        return self.normalized(x) * weight + bias

    def normalized(self, x: Tensor) -> Tensor:
        if self.config.norm == "layer":
            x = x - x.mean(-1, keepdim=True)
        return x / torch.sqrt((x**2).mean(-1, keepdim=True) + self.config.norm_epsilon)

    def linear(self, x: Tensor, name: str) -> Tensor:
        out = x @ self.weights[name].T
        return out + self.weights[f"{name}.bias"] if f"{name}.bias" in self.weights else out

    def attention(self, x: Tensor, i: int, layer: LayerConfig) -> Tensor:
        c, size = self.config, self.config.head_dim
        length, wide = len(x), self.config.padded_head_dim
        qkv = self.linear(x, f"{i}.qkv").view(length, -1, wide)
        assert not qkv[..., size:].any()  # the padding of heads
        queries = self.normed_heads(qkv[:, : c.heads, :size], f"{i}.q_norm")
        keys = self.normed_heads(qkv[:, c.heads : c.heads + c.kv_heads, :size], f"{i}.k_norm")
        values = qkv[:, c.heads + c.kv_heads :, :size]
        if layer.rotation is not None:
            queries, keys = (self.rotated(part, c.rotations[layer.rotation]) for part in (queries, keys))
        out = torch.zeros(length, c.heads, wide, dtype=torch.float64)
        ages = torch.arange(length)[:, None] - torch.arange(length)  # [query, key]
        visible = (ages >= 0) & (ages < (layer.window or length))
        for head in range(c.heads):
            shared = head // (c.heads // c.kv_heads)
            scores = queries[:, head] @ keys[:, shared].T * c.attention_scale
            if c.attention_softcap:
                scores = c.attention_softcap * torch.tanh(scores / c.attention_softcap)
            if c.alibi_slopes:
                scores = scores + c.alibi_slopes[head] * torch.arange(length)
            chances = torch.softmax(torch.where(visible, scores, -math.inf), 1)
            out[:, head, :size] = chances @ values[:, shared]
        return self.linear(out.flatten(1), f"{i}.attention_out")

    def normed_heads(self, x: Tensor, name: str) -> Tensor:
        c = self.config
        if c.qk_norm == "none":
            return x
        weight = self.weights[f"{name}.weight"].view(-1, c.padded_head_dim)[:, : c.head_dim]
        if c.qk_norm == "head":
            x = torch.stack([self.normalized(x[:, head]) for head in range(x.shape[1])], 1)
        else:
            x = self.normalized(x.reshape(len(x), -1)).view(x.shape)
        if f"{name}.bias" in self.weights:
            return x * weight + self.weights[f"{name}.bias"].view(-1, c.padded_head_dim)[:, : c.head_dim]
        return x * weight

    def rotated(self, x: Tensor, rotation: Rotation) -> Tensor:
        """Multiply each pair as a complex number by the rotation of its position."""
        pairs = len(rotation.frequencies)
        long_text = 0 < rotation.short_context < len(x)
        frequencies = torch.tensor(rotation.long_frequencies if long_text else rotation.frequencies).double()
        angles = torch.arange(len(x), dtype=torch.float64)[:, None] * frequencies
        turns = torch.polar(torch.full_like(angles, rotation.factor), angles)[:, None]  # [T, 1, pairs]
        turned = torch.complex(x[..., :pairs].contiguous(), x[..., pairs : 2 * pairs].contiguous()) * turns
        return torch.cat([turned.real, turned.imag, x[..., 2 * pairs :]], -1)

    def convolution(self, x: Tensor, i: int) -> Tensor:
        width, channels = self.config.convolution_width, self.config.hidden
        in_gate, out_gate, inner = self.linear(x, f"{i}.conv_in").split(channels, 1)
        kernel = self.weights[f"{i}.conv"].T[:, None]  # [H, 1, W]
        mixed = torch.nn.functional.conv1d(
            (in_gate * inner).T[None],
            kernel,
            self.weights.get(f"{i}.conv.bias"),
            padding=width - 1,
            groups=channels,
        )[0, :, : len(x)].T
        return self.linear(out_gate * mixed, f"{i}.conv_out")

    def mlp(self, x: Tensor, i: int) -> Tensor:
        c = self.config
        inner = self.linear(x, f"{i}.{c.up}")
        if not c.gated:
            return self.linear(self.activated(inner), f"{i}.down")
        return self.linear(self.gated(inner, c.mlp_width(i)), f"{i}.down")

    def gated(self, inner: Tensor, width: int) -> Tensor:
        panels = inner.split(16, 1)  # alternately of gate and up
        gate, up = (torch.cat(panels[part::2], 1)[:, :width] for part in (0, 1))
        return self.activated(gate) * up

    def experts(self, x: Tensor, i: int) -> Tensor:
        c, w = self.config.experts, self.weights
        assert c is not None
        logits = x @ w[f"{i}.router"].T  # [T, E]
        scores = torch.softmax(logits, 1) if c.scores == "softmax" else torch.sigmoid(logits)
        ranked = scores + w[f"{i}.router_correction"] if c.correction else scores
        ups = w[f"{i}.experts_gate_up"].chunk(c.count)
        downs = [part[: self.config.hidden] for part in w[f"{i}.experts_down"].chunk(c.count)]
        out = torch.zeros_like(x)
        for token, vector in enumerate(x):
            order = sorted(range(c.count), key=lambda expert: (-float(ranked[token, expert]), expert))
            chosen = order[: c.per_token]
            total = sum(scores[token, expert] for expert in chosen) if c.normalized else 1
            for expert in chosen:
                inner = self.gated((vector @ ups[expert].T)[None], c.intermediate)[0]
                out[token] += c.scale * scores[token, expert] / total * (inner @ downs[expert].T)
        if c.shared_intermediate:
            share = torch.sigmoid(x @ w[f"{i}.shared_gate"])[:, None] if c.shared_gate else 1
            out = out + share * self.mlp(x, i)
        return out

    def activated(self, x: Tensor) -> Tensor:
        match self.config.activation:
            case "silu":
                return x * torch.sigmoid(x)
            case "gelu":
                return x * torch.special.ndtr(x)
            case "gelu_tanh":
                return x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2
            case "relu":
                return x.clamp(min=0)
            case "relu2":
                return x.clamp(min=0) ** 2
