"""The decoder that ``DecoderConfig`` describes, on packed tokens.

The M tokens of all rows of a step are concatenated without padding; only attention and convolutions distinguish
sequences. The residual stream and the logits are float32 whatever the weights' dtype is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.engine.pytorch.activations import activation
from runtime.engine.pytorch.attention import Tiles, attend
from runtime.engine.pytorch.convolution import convolve
from runtime.engine.pytorch.kv_cache import PagedKV
from runtime.engine.pytorch.linear import BatchInvariantLinear
from runtime.engine.pytorch.normalization import Norms
from runtime.engine.pytorch.rotary import Angles, rotary_angles, rotate
from runtime.model.config import DecoderConfig
from runtime.model.packing import PANEL_ROWS, unpack
from runtime.model.snapshot import Snapshot
from runtime.model.tensors import matrices

Weights = Mapping[str, Tensor]  # tensor names are those of ``runtime.model.tensors``


@dataclass(slots=True)
class Batch:
    """The inputs of one forward pass. M: packed tokens, S: sampled tokens.

    Args:
        ids: [M] token ids.
        positions: [M] positions of the tokens in their sequences.
        long: [M] whether each token's text uses ``Rotation.long_frequencies``.
        slots: [M] KV cache slots (block x ``BLOCK_TOKENS`` + offset) to write the tokens' keys and values to.
        outputs: [M] index of each token in the concatenated attention outputs of all tile groups.
        samples: [S] indices of the tokens whose logits are needed.
        tiles: for each window of the model's layers its attention tiles, one entry per tile width.
        history: [M, convolution width] slots that convolutions read, from ``convolution.history_slots``; None for a
            model without them.
    """

    ids: Tensor
    positions: Tensor
    long: Tensor
    slots: Tensor
    outputs: Tensor
    samples: Tensor
    tiles: Mapping[int, Sequence[Tiles]]
    history: Tensor | None


@dataclass(slots=True)
class _Step:
    """What the layers of one forward pass share: the batch, the cache, and what is computed once from the batch."""

    batch: Batch
    kv: PagedKV
    slot_indices: Tensor
    angles: list[Angles]


class Decoder:
    """A decoder model on one device. Calling it runs a forward pass.

    Args:
        config: the model's configuration.
        weights: the model's tensors, all of one dtype on one device.
        tile: smallest number of rows per product, 0 for products of any size; see ``BatchInvariantLinear``.
        exact: whether attention uses fixed product shapes, see ``attention.attend``.
    """

    def __init__(self, config: DecoderConfig, weights: Weights, *, tile: int = 0, exact: bool = False) -> None:
        self._config = config
        self._exact, self._tile = exact, max(tile, 1)
        self._embed = weights["embed"]
        self._dtype, device = self._embed.dtype, self._embed.device
        self._positions = weights.get("positions")
        self._types, self._relative_bias = weights.get("token_types"), weights.get("relative_bias")  # of encoders
        self._norm = Norms(config, weights)
        self._activation = activation(config.activation, device)
        self._convolutions = {name: weights[name].float() for name in weights if name.endswith((".conv", ".conv.bias"))}
        self._head = "embed" if config.tied else "head"
        names = [name for name in matrices(config) if name not in ("embed", "head")] + [self._head]
        arranged = {name: weights[name] for name in names}
        biases = {name: weights[f"{name}.bias"] for name in names if f"{name}.bias" in weights}
        for parts in (arranged, biases):
            for name in parts:
                if name.endswith(".gate_up"):
                    parts[name] = _halves(parts[name], config.intermediate)
        self._product = BatchInvariantLinear(arranged, biases, tile, wide=[self._head])

        def frequencies(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float32, device=device)

        self._rotations = [
            (frequencies(r.frequencies), frequencies(r.long_frequencies) if r.long_frequencies else None, r.factor)
            for r in config.rotations
        ]

    def __call__(self, batch: Batch, kv: PagedKV) -> tuple[Tensor, Tensor]:
        """Run a forward pass and write the tokens' keys and values to the cache.

        Args:
            batch: the tokens.
            kv: the KV cache.

        Returns:
            [S, V] float32 logits, and [M] whether the last layer's output of each token is finite.
        """
        config = self._config
        angles = [rotary_angles(batch.positions, batch.long, *rotation) for rotation in self._rotations]
        step = _Step(batch, kv, kv.slot_indices(batch.slots), angles)
        x = self._embedded(batch)  # [M, H]
        for layer in range(len(config.layers)):
            x = self._layer(x, layer, step)
        finite = torch.isfinite(x).all(dim=1)
        logits = self._product(self._norm(x[batch.samples], "final_norm"), self._head)
        if config.logit_scale != 1:
            logits = logits * config.logit_scale
        if config.logit_softcap:
            logits = torch.tanh(logits / config.logit_softcap) * config.logit_softcap
        return logits, finite

    def _embedded(self, batch: Batch) -> Tensor:
        # The residual stream stays in float32, as in the compiled kernels: rounding it to bfloat16 after each layer
        # shifts the logits by 0.05 to 0.1, which is enough to change results.
        x = F.embedding(batch.ids, self._embed).float()
        if self._config.embedding_scale != 1:
            x = x * self._config.embedding_scale
        if self._positions is not None:
            x = x + F.embedding(batch.positions, self._positions)
        return self._norm(x, "embed_norm") if self._config.embedding_norm else x

    def _layer(self, x: Tensor, layer: int, step: _Step) -> Tensor:
        """Return the residual stream [M, H] after a layer, given that before it."""
        config = self._config
        mixer = self._attention if config.layers[layer].kind == "attention" else self._convolution
        first = config.pre_norm and config.layers[layer].attention_norm
        normalized = self._norm(x, f"{layer}.attention_norm") if first else x
        return self._with_mlp(x, normalized, mixer(normalized, layer, step), layer)

    def _with_mlp(self, x: Tensor, normalized: Tensor, mixed: Tensor, layer: int) -> Tensor:
        """Return the residual stream [M, H] after a layer.

        Args:
            x: that before it.
            normalized: the input of its attention.
            mixed: the output of its attention.
            layer: the layer's index.
        """
        config = self._config
        mixed = self._scaled(mixed, f"{layer}.attention_post_norm")
        if not config.parallel:
            x = x + mixed
        if not config.shared_norm:
            normalized = self._norm(x, f"{layer}.mlp_norm") if config.pre_norm else x
        out = self._scaled(self._mlp(normalized, layer), f"{layer}.mlp_post_norm")
        return x + mixed + out if config.parallel else x + out

    def _scaled(self, x: Tensor, post_norm: str) -> Tensor:
        """Return what is added to the residual stream for the output of attention or MLP."""
        if self._config.post_norm:
            x = self._norm(x, post_norm)
        return x if self._config.residual_scale == 1 else x.float() * self._config.residual_scale

    def _attention(self, x: Tensor, layer: int, step: _Step) -> Tensor:
        config, described, batch = self._config, self._config.layers[layer], step.batch
        qkv = self._product(x, f"{layer}.qkv").view(len(x), -1, config.padded_head_dim)  # [M, heads + 2 kv_heads, D]
        q, k, v = torch.split(qkv, [config.heads, config.kv_heads, config.kv_heads], dim=1)
        if config.qk_norm != "none":
            q, k = self._norm.heads(q, f"{layer}.q_norm"), self._norm.heads(k, f"{layer}.k_norm")
        if described.rotation is not None:
            angles = step.angles[described.rotation]
            q, k = rotate(q, angles), rotate(k, angles)
        step.kv.write(layer, step.slot_indices, torch.cat([k.to(self._dtype), v], dim=1))
        parts = [
            attend(
                q.to(self._dtype),
                step.kv,
                layer,
                tile,
                scale=config.attention_scale,
                softcap=config.attention_softcap,
                exact=self._exact,
            )
            for tile in batch.tiles[described.window]
        ]
        return self._product(torch.cat(parts)[batch.outputs], f"{layer}.attention_out")

    def _convolution(self, x: Tensor, layer: int, step: _Step) -> Tensor:
        in_gate, out_gate, inner = self._product(x, f"{layer}.conv_in").float().chunk(3, dim=1)  # [M, H] each
        step.kv.write_inputs(layer, step.batch.slots, in_gate * inner)
        weight, bias = self._convolutions[f"{layer}.conv"], self._convolutions.get(f"{layer}.conv.bias")
        assert step.batch.history is not None
        return self._product(out_gate * convolve(step.kv, layer, step.batch.history, weight, bias), f"{layer}.conv_out")

    def _mlp(self, x: Tensor, layer: int) -> Tensor:
        inner = self._product(x, f"{layer}.{self._config.up}")
        if self._config.gated:
            gate, up = inner.chunk(2, dim=1)  # [M, I] each
            inner = self._activation(gate) * up
        else:
            inner = self._activation(inner)
        return self._product(inner, f"{layer}.down")


def _halves(interleaved: Tensor, rows: int) -> Tensor:
    """Deinterleave alternating panels of gate and up projection: all gate rows, then all up rows, without padding."""
    panels = interleaved.view(-1, 2, PANEL_ROWS, *interleaved.shape[1:])
    return torch.cat([panels[:, 0].flatten(0, 1)[:rows], panels[:, 1].flatten(0, 1)[:rows]])


def weights_from_snapshot(snapshot: Snapshot, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """Unpack a snapshot's weight matrices and convert all its tensors to one dtype.

    Args:
        snapshot: an open snapshot; int8 weights are dequantized.
        dtype: dtype of the returned tensors.
        device: device of the returned tensors.
    """
    weights = {}
    for name in snapshot:
        if snapshot.is_matrix(name):
            rows, columns = snapshot.shape(name)
            array = unpack(snapshot.matrix(name), rows, columns, snapshot.matrix_kind(name))
            weights[name] = torch.from_numpy(array).to(device, dtype)
        else:
            weights[name] = torch.tensor(snapshot.vector(name)).to(device, dtype)
    return weights
