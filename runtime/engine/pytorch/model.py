"""A model's tensors on a device, and what its layers compute token by token: what decoder and encoder share.

The M tokens of all texts of a step are concatenated without padding. The residual stream is float32 whatever the
weights' dtype is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.engine.pytorch.activations import activation
from runtime.engine.pytorch.experts import Experts, halves
from runtime.engine.pytorch.linear import BatchInvariantLinear
from runtime.engine.pytorch.normalization import Norms
from runtime.engine.pytorch.rotary import Angles, rotary_angles, rotate
from runtime.model.config import DecoderConfig
from runtime.model.packing import unpack
from runtime.model.snapshot import Snapshot
from runtime.model.tensors import matrices

Weights = Mapping[str, Tensor]  # tensor names are those of ``runtime.model.tensors``


class TorchModel:
    """A model on one device. It has all of a layer but attention and the convolution's sums, which mix tokens.

    Args:
        config: the model's configuration.
        weights: the model's tensors on one device, all of one dtype but those of routers and gates of shared experts.
        tile: smallest number of rows per product, 0 for products of any size; see ``BatchInvariantLinear``.
    """

    def __init__(self, config: DecoderConfig, weights: Weights, *, tile: int = 0) -> None:
        self.config = config
        self.tile = max(tile, 1)
        self._embed = weights["embed"]
        self.dtype, self.device = self._embed.dtype, self._embed.device
        self._positions, self._types = weights.get("positions"), weights.get("token_types")
        self.relative_bias = weights.get("relative_bias")
        self.norm = Norms(config, weights)
        self._activation = activation(config.activation, self.device)
        self._convolutions = {name: weights[name].float() for name in weights if name.endswith((".conv", ".conv.bias"))}
        self._head = "embed" if config.tied else "head"
        names = [name for name in matrices(config) if name not in ("embed", "head") and ".experts_" not in name]
        names.append(self._head)
        arranged = {name: weights[name] for name in names}
        biases = {name: weights[f"{name}.bias"] for name in names if f"{name}.bias" in weights}
        for parts in (arranged, biases):
            for name in parts:
                if name.endswith(".gate_up"):
                    parts[name] = halves(parts[name], config.mlp_width(int(name.partition(".")[0])))
        mixed = any(layer.experts for layer in config.layers)
        self._experts = Experts(config, weights, self._activation, tile) if mixed else None
        self.product = BatchInvariantLinear(arranged, biases, tile, wide=[self._head])

        def frequencies(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float32, device=self.device)

        self._rotations = [
            (frequencies(r.frequencies), frequencies(r.long_frequencies) if r.long_frequencies else None, r.factor)
            for r in config.rotations
        ]

    def embedded(self, ids: Tensor, positions: Tensor, types: Tensor | None = None) -> Tensor:
        """Return the embeddings [M, H] of tokens.

        Args:
            ids: [M] token ids.
            positions: [M] positions of the tokens in their texts.
            types: [M] token types; None for a model without them.
        """
        # The residual stream stays in float32, as in the compiled kernels: rounding it to bfloat16 after each layer
        # shifts the logits by 0.05 to 0.1, which is enough to change results.
        x = F.embedding(ids, self._embed).float()
        if self.config.embedding_scale != 1:
            x = x * self.config.embedding_scale
        if self._positions is not None:
            x = x + F.embedding(positions, self._positions)
        if self._types is not None and types is not None:
            x = x + F.embedding(types, self._types)
        return self.norm(x, "embed_norm") if self.config.embedding_norm else x

    def angles(self, positions: Tensor, long: Tensor) -> list[Angles]:
        """Return the angles of each rotation.

        Args:
            positions: [M] positions of the tokens in their texts.
            long: [M] whether each token's text uses ``Rotation.long_frequencies``.
        """
        return [rotary_angles(positions, long, *rotation) for rotation in self._rotations]

    def layer_input(self, x: Tensor, layer: int) -> Tensor:
        """Return [M, H] the input of a layer's attention, given the residual stream before the layer."""
        first = self.config.pre_norm and self.config.layers[layer].attention_norm
        return self.norm(x, f"{layer}.attention_norm") if first else x

    def queries_keys_values(self, x: Tensor, layer: int, angles: Sequence[Angles]) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries [M, heads, D], keys and values [M, kv_heads, D] of a layer's input, rotated by its angles."""
        config, rotation = self.config, self.config.layers[layer].rotation
        qkv = self.product(x, f"{layer}.qkv").view(len(x), -1, config.padded_head_dim)  # [M, heads + 2 kv_heads, D]
        q, k, v = torch.split(qkv, [config.heads, config.kv_heads, config.kv_heads], dim=1)
        if config.qk_norm != "none":
            q, k = self.norm.heads(q, f"{layer}.q_norm"), self.norm.heads(k, f"{layer}.k_norm")
        if rotation is not None:
            q, k = rotate(q, angles[rotation]), rotate(k, angles[rotation])
        return q, k, v

    def convolution_inputs(self, x: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Return the inputs of a gated short convolution, and the gate of its outputs, [M, H] each."""
        in_gate, out_gate, inner = self.product(x, f"{layer}.conv_in").float().chunk(3, dim=1)
        return in_gate * inner, out_gate

    def convolution(self, layer: int) -> tuple[Tensor, Tensor | None]:
        """Return the weights [taps, H] and the bias [H] of a layer's convolution."""
        return self._convolutions[f"{layer}.conv"], self._convolutions.get(f"{layer}.conv.bias")

    def with_mlp(
        self, x: Tensor, normalized: Tensor, mixed: Tensor, layer: int, *, every_expert: bool = False
    ) -> Tensor:
        """Return the residual stream [M, H] after a layer.

        Args:
            x: that before it.
            normalized: the input of its attention.
            mixed: the output of its attention.
            layer: the layer's index.
            every_expert: whether all experts multiply all tokens, see ``Experts``.
        """
        config = self.config
        mixed = self._scaled(mixed, f"{layer}.attention_post_norm")
        if not config.parallel:
            x = x + mixed
        if not config.shared_norm:
            normalized = self.norm(x, f"{layer}.mlp_norm") if config.pre_norm else x
        out = self._scaled(self.mlp(normalized, layer, every_expert=every_expert), f"{layer}.mlp_post_norm")
        return x + mixed + out if config.parallel else x + out

    def _scaled(self, x: Tensor, post_norm: str) -> Tensor:
        """Return what is added to the residual stream for the output of attention or MLP."""
        if self.config.post_norm:
            x = self.norm(x, post_norm)
        return x if self.config.residual_scale == 1 else x.float() * self.config.residual_scale

    def mlp(self, x: Tensor, layer: int, *, every_expert: bool = False) -> Tensor:
        """Return [M, H] the output of a layer's MLP, or of its mixture of experts. Arguments as for ``with_mlp``."""
        if self._experts is None or not self.config.layers[layer].experts:
            return self._dense(x, layer)
        out, share = self._experts(x, layer, every=every_expert)
        if not self.config.mlp_width(layer):
            return out
        shared = self._dense(x, layer)
        return out + (shared if share is None else shared * share)

    def _dense(self, x: Tensor, layer: int) -> Tensor:
        """Return [M, H] the output of a layer's MLP or shared expert."""
        inner = self.product(x, f"{layer}.{self.config.up}")
        if self.config.gated:
            gate, up = inner.chunk(2, dim=1)  # [M, I] each
            inner = self._activation(gate) * up
        else:
            inner = self._activation(inner)
        return self.product(inner, f"{layer}.down")

    def logits(self, x: Tensor) -> Tensor:
        """Return [S, V] the float32 logits of tokens, given the residual stream [S, H] after the last layer."""
        config = self.config
        logits = self.product(self.norm(x, "final_norm"), self._head)
        if config.logit_scale != 1:
            logits = logits * config.logit_scale
        if config.logit_softcap:
            logits = torch.tanh(logits / config.logit_softcap) * config.logit_softcap
        return logits


def weights_from_snapshot(snapshot: Snapshot, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """Unpack a snapshot's weight matrices and convert its tensors to one dtype.

    Args:
        snapshot: an open snapshot; int8 weights are dequantized.
        dtype: dtype of the returned tensors, except for those of routers and of the gates of shared experts, which are
            float32.
        device: device of the returned tensors.
    """
    weights = {}
    for name in snapshot:
        if snapshot.is_matrix(name):
            rows, columns = snapshot.shape(name)
            array = unpack(snapshot.matrix(name), rows, columns, snapshot.matrix_kind(name))
            weights[name] = torch.from_numpy(array).to(device, dtype)
        else:
            exact = name.endswith((".router", ".router_correction", ".shared_gate"))
            weights[name] = torch.tensor(snapshot.vector(name)).to(device, torch.float32 if exact else dtype)
    return weights
