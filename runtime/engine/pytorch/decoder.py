"""Decoder models of the GPT-2 and Llama families on packed tokens.

The M tokens of all rows of a step are concatenated without padding; only attention distinguishes sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.engine.pytorch.attention import Tiles, attend
from runtime.engine.pytorch.kv_cache import PagedKV
from runtime.engine.pytorch.linear import BatchInvariantLinear
from runtime.model.config import DecoderConfig
from runtime.model.packing import PANEL_ROWS, unpack
from runtime.model.snapshot import Snapshot

Weights = Mapping[str, Tensor]  # tensor names are those of ``runtime.loading.convert``

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


@dataclass(slots=True)
class Batch:
    """The inputs of one forward pass. M: packed tokens, S: sampled tokens.

    Args:
        ids: [M] token ids.
        positions: [M] positions of the tokens in their sequences.
        slots: [M] KV cache slots (block x ``BLOCK_TOKENS`` + offset) to write the tokens' keys and values to.
        outputs: [M] index of each token in the concatenated attention outputs of all tile groups.
        samples: [S] indices of the tokens whose logits are needed.
        tiles: attention tiles, one entry per tile width.
    """

    ids: Tensor
    positions: Tensor
    slots: Tensor
    outputs: Tensor
    samples: Tensor
    tiles: list[Tiles]


class Decoder:
    """A decoder model (GPT-2 or Llama family) on one device. Calling it runs a forward pass.

    Args:
        config: the model's configuration.
        weights: the model's tensors, all of one dtype on one device.
        tile: smallest number of rows per product, 0 for products of any size; see ``BatchInvariantLinear``.
        exact: whether attention uses fixed product shapes, see ``attention.attend``.
    """

    def __init__(self, config: DecoderConfig, weights: Weights, *, tile: int = 0, exact: bool = False) -> None:
        self._config = config
        self._exact = exact
        self._embed = weights["embed"]
        self._positions = weights.get("positions")
        norms = ("norm.weight", "norm.bias")
        self._norms = {name: weight.float() for name, weight in weights.items() if name.endswith(norms)}
        inner = "gate_up" if config.family == "llama" else "up"
        names = [f"{i}.{name}" for i in range(config.layers) for name in ("qkv", "attention_out", inner, "down")]
        names.append("embed" if config.tied else "head")
        arranged = {name: weights[name] for name in names}
        biases = {name: weights[f"{name}.bias"] for name in names if f"{name}.bias" in weights}
        for parts in (arranged, biases):
            for name in parts:
                if name.endswith(".gate_up"):
                    parts[name] = _halves(parts[name], config.intermediate)
        self._head = names[-1]
        self._product = BatchInvariantLinear(arranged, biases, tile, wide=[self._head])
        self._frequencies = torch.tensor(config.inverse_frequencies, device=self._embed.device)  # [D / 2]

    def __call__(self, batch: Batch, kv: PagedKV) -> tuple[Tensor, Tensor]:
        """Run a forward pass and write the tokens' keys and values to the cache.

        Args:
            batch: the tokens.
            kv: the KV cache.

        Returns:
            [S, V] float32 logits, and [M] whether the last layer's output of each token is finite.
        """
        config = self._config
        # The residual stream stays in float32, as in the compiled kernels: rounding it to bfloat16 after each layer
        # shifts the logits by 0.05 to 0.1, which is enough to change results.
        x = F.embedding(batch.ids, self._embed).float()  # [M, H]
        turn = None
        if self._positions is not None:
            x = x + F.embedding(batch.positions, self._positions)
        if config.family == "llama":
            turn = rotations(batch.positions, self._frequencies, config.rope_attention_factor)
        places = kv.places(batch.slots)
        for i in range(config.layers):
            x = x + self._attention(self._norm(x, f"{i}.attention_norm"), i, turn, places, batch, kv)
            x = x + self._mlp(self._norm(x, f"{i}.mlp_norm"), i)
        finite = torch.isfinite(x).all(dim=1)
        x = self._norm(x[batch.samples], "final_norm")
        return self._product(x, self._head), finite

    def _attention(
        self, x: Tensor, layer: int, turn: tuple[Tensor, Tensor] | None, places: Tensor, batch: Batch, kv: PagedKV
    ) -> Tensor:
        config = self._config
        qkv = self._product(x, f"{layer}.qkv").view(len(x), -1, config.head_dim)  # [M, heads + 2 kv_heads, D]
        q, k, v = torch.split(qkv, [config.heads, config.kv_heads, config.kv_heads], dim=1)
        if turn is not None:
            turned = rotate(qkv[:, : -config.kv_heads], *turn)
            q, k = torch.split(turned, [config.heads, config.kv_heads], dim=1)
        kv.write(layer, places, torch.cat([k, v], dim=1))
        parts = [attend(q, kv, layer, tile, exact=self._exact) for tile in batch.tiles]
        return self._product(torch.cat(parts)[batch.outputs], f"{layer}.attention_out")

    def _mlp(self, x: Tensor, layer: int) -> Tensor:
        config = self._config
        activation = _ACTIVATIONS[config.activation]
        if config.family == "gpt2":
            return self._product(activation(self._product(x, f"{layer}.up")), f"{layer}.down")
        gate, up = self._product(x, f"{layer}.gate_up").chunk(2, dim=1)  # [M, I] each
        return self._product(activation(gate) * up, f"{layer}.down")

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight, shape = self._norms[f"{name}.weight"], (self._config.hidden,)
        if self._config.family == "llama":
            return F.rms_norm(x, shape, weight, self._config.norm_epsilon)
        return F.layer_norm(x, shape, weight, self._norms[f"{name}.bias"], self._config.norm_epsilon)


def rotations(positions: Tensor, frequencies: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """Compute the cosines and sines of rotary position embeddings (arXiv:2104.09864).

    Args:
        positions: [M] positions of the tokens.
        frequencies: [D / 2] radians per position.
        factor: factor that cosines and sines are multiplied by (attention scaling).

    Returns:
        [M, 1, D / 2] each, float32.
    """
    angles = positions[:, None, None].float() * frequencies
    return angles.cos() * factor, angles.sin() * factor


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary embeddings to the pairs formed by a head's first and second half.

    Args:
        x: [M, N, D] queries or keys of N heads.
        cos: [M, 1, D / 2] cosines from ``rotations``.
        sin: [M, 1, D / 2] sines from ``rotations``.
    """
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


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
            array = unpack(snapshot.matrix(name), rows, columns, snapshot.facts.kind)
            weights[name] = torch.from_numpy(array).to(device, dtype)
        else:
            weights[name] = torch.tensor(snapshot.vector(name)).to(device, dtype)
    return weights
