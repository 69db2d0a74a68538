"""The decoder that ``DecoderConfig`` describes, on packed tokens.

The M tokens of all rows of a step are concatenated without padding; only attention and convolutions distinguish
sequences. The residual stream and the logits are float32 whatever the weights' dtype is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.engine.pytorch.attention import Tiles, attend
from runtime.engine.pytorch.convolution import convolve
from runtime.engine.pytorch.kv_cache import PagedKV
from runtime.engine.pytorch.model import TorchModel
from runtime.engine.pytorch.rotary import Angles


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
        fixed: whether the operations may not depend on numbers on the device, as in a CUDA graph.
    """

    ids: Tensor
    positions: Tensor
    long: Tensor
    slots: Tensor
    outputs: Tensor
    samples: Tensor
    tiles: Mapping[int, Sequence[Tiles]]
    history: Tensor | None
    fixed: bool


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
        model: the model.
        exact: whether attention uses fixed product shapes, see ``attention.attend``.
    """

    def __init__(self, model: TorchModel, *, exact: bool = False) -> None:
        self._model, self._config = model, model.config
        self._exact = exact

    def __call__(self, batch: Batch, kv: PagedKV) -> tuple[Tensor, Tensor]:
        """Run a forward pass and write the tokens' keys and values to the cache.

        Args:
            batch: the tokens.
            kv: the KV cache.

        Returns:
            [S, V] float32 logits, and [M] whether the last layer's output of each token is finite.
        """
        model = self._model
        step = _Step(batch, kv, kv.slot_indices(batch.slots), model.angles(batch.positions, batch.long))
        x = model.embedded(batch.ids, batch.positions)  # [M, H]
        for layer, described in enumerate(self._config.layers):
            mixer = self._attention if described.kind == "attention" else self._convolution
            normalized = model.layer_input(x, layer)
            x = model.with_mlp(x, normalized, mixer(normalized, layer, step), layer, every_expert=batch.fixed)
        finite = torch.isfinite(x).all(dim=1)
        return model.logits(x[batch.samples]), finite

    def _attention(self, x: Tensor, layer: int, step: _Step) -> Tensor:
        config, dtype, batch = self._config, self._model.dtype, step.batch
        q, k, v = self._model.queries_keys_values(x, layer, step.angles)
        step.kv.write(layer, step.slot_indices, torch.cat([k.to(dtype), v], dim=1))
        parts = [
            attend(
                q.to(dtype),
                step.kv,
                layer,
                tile,
                scale=config.attention_scale,
                softcap=config.attention_softcap,
                exact=self._exact,
            )
            for tile in batch.tiles[config.layers[layer].window]
        ]
        return self._model.product(torch.cat(parts)[batch.outputs], f"{layer}.attention_out")

    def _convolution(self, x: Tensor, layer: int, step: _Step) -> Tensor:
        inputs, gate = self._model.convolution_inputs(x, layer)
        step.kv.write_inputs(layer, step.batch.slots, inputs)
        assert step.batch.history is not None
        mixed = convolve(step.kv, layer, step.batch.history, *self._model.convolution(layer))
        return self._model.product(gate * mixed, f"{layer}.conv_out")
