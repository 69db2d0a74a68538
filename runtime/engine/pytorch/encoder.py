"""The encoder that ``DecoderConfig`` describes, on packed tokens: each text attends within itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from runtime.encoder_types import EncoderInput
from runtime.engine.core_share import CoreShare
from runtime.engine.pytorch.model import TorchModel
from runtime.engine.pytorch.rotary import Angles
from runtime.model.relative_positions import bias_by_distance

TILE = 16
"""Smallest number of rows of an encoder's products."""


class TorchEncoder:
    """Computes the states of packed texts. Implements ``runtime.engine.runners.EncoderRunner``.

    Linear layers multiply the tokens of all texts at once, in products of fixed shapes; attention and convolutions are
    computed text by text, so that no bit of a text's states depends on the others.

    Args:
        model: the model, which a decoder may use, too.
        max_tokens: maximum tokens per step.
        share: gives this encoder its turns beside models that generate.
    """

    def __init__(self, model: TorchModel, *, max_tokens: int, share: CoreShare | None = None) -> None:
        self._model, self._config = model, model.config
        self.max_tokens = max_tokens
        self._share = share or CoreShare()
        self._device = model.device
        self._bias: Tensor | None = None
        if model.relative_bias is not None:
            table = bias_by_distance(model.relative_bias.float().cpu().numpy())
            self._bias = torch.from_numpy(table).to(self._device)
        slopes = torch.tensor(self._config.alibi_slopes, dtype=torch.float32, device=self._device)
        self._slopes = slopes[:, None, None] if self._config.alibi_slopes else None

    def step_tokens(self, most: int) -> int:
        """Return the maximum tokens of the next step."""
        return most

    def states(self, texts: Sequence[EncoderInput], outputs: Sequence[range]) -> list[NDArray[np.float32]]:
        """Return the final states of some of each text's tokens; see ``EncoderRunner``."""
        lengths = [len(text.ids) for text in texts]
        padding = -sum(lengths) % self._model.tile
        ids = self._ints([token for text in texts for token in text.ids] + [0] * padding)
        positions = self._ints([i for n in lengths for i in range(n)] + [0] * padding)
        short = self._config.short_context
        long = torch.tensor([n > short > 0 for n in lengths for _ in range(n)] + [False] * padding, device=self._device)
        with torch.inference_mode():
            x = self._model.embedded(ids, positions, self._types(texts, padding))
            angles = self._model.angles(positions, long)
            for layer in range(len(self._config.layers)):
                with self._share.encoding():
                    x = self._encoder_layer(x, layer, lengths, angles)
            if self._config.final_norm:
                x = self._model.norm(x, "final_norm")
            found: NDArray[np.float32] = x.float().cpu().numpy()
        starts = np.concatenate([[0], np.cumsum(lengths)])
        return [found[start + span.start : start + span.stop] for start, span in zip(starts, outputs, strict=False)]

    def close(self) -> None:
        """Do nothing: the tensors are freed with this object."""

    def _types(self, texts: Sequence[EncoderInput], padding: int) -> Tensor | None:
        """Return the types [M] of the texts' tokens; None for a model without them."""
        if not self._config.token_types:
            return None
        types = [kind for text in texts for kind in (text.types or (0,) * len(text.ids))]
        return self._ints(types + [0] * padding)

    def _ints(self, values: list[int]) -> Tensor:
        return torch.tensor(values, device=self._device)

    def _encoder_layer(self, x: Tensor, layer: int, lengths: Sequence[int], angles: Sequence[Angles]) -> Tensor:
        """Return the residual stream [M, H] after a layer, given that before it."""
        model = self._model
        normalized = model.layer_input(x, layer)
        if self._config.layers[layer].kind == "attention":
            mixed = self._attend(normalized, layer, lengths, angles)
        else:
            mixed = self._convolve(normalized, layer, lengths)
        if self._config.norm_after_sum:
            x = model.norm(x + mixed, f"{layer}.attention_post_norm")
            return model.norm(x + model.mlp(x, layer), f"{layer}.mlp_post_norm")
        return model.with_mlp(x, normalized, mixed, layer)

    def _attend(self, x: Tensor, layer: int, lengths: Sequence[int], angles: Sequence[Angles]) -> Tensor:
        config = self._config
        q, k, v = self._model.queries_keys_values(x, layer, angles)
        group = config.heads // config.kv_heads
        parts = []
        start = 0
        for length in lengths:
            span = slice(start, start + length)
            one_q, one_k, one_v = (part[span].transpose(0, 1)[None].to(v.dtype) for part in (q, k, v))  # [1, N, L, D]
            one_k, one_v = (part.repeat_interleave(group, dim=1) for part in (one_k, one_v))
            mask = self._mask(length, config.layers[layer].window, v.dtype)
            scale, softcap = config.attention_scale, config.attention_softcap
            if softcap:
                scores = torch.tanh(one_q.float() @ one_k.float().transpose(2, 3) * (scale / softcap)) * softcap
                out = (scores if mask is None else scores + mask).softmax(3).to(v.dtype) @ one_v
            else:
                out = F.scaled_dot_product_attention(one_q, one_k, one_v, attn_mask=mask, scale=scale)
            parts.append(out[0].transpose(0, 1).flatten(1))
            start += length
        mixed = F.pad(torch.cat(parts), (0, 0, 0, len(x) - start))
        return self._model.product(mixed, f"{layer}.attention_out")

    def _convolve(self, x: Tensor, layer: int, lengths: Sequence[int]) -> Tensor:
        """Return the output of a gated short convolution, see ``convolution.convolve``."""
        inputs, gate = self._model.convolution_inputs(x, layer)
        weight, bias = self._model.convolution(layer)
        parts = []
        start = 0
        for length in lengths:
            alone = F.pad(inputs[start : start + length], (0, 0, len(weight) - 1, 0))
            parts.append(alone.unfold(0, len(weight), 1))
            start += length
        windows = F.pad(torch.cat(parts), (0, 0, 0, 0, 0, len(x) - start))  # [M, H, width]
        total = windows[..., 0] * weight[0]
        for tap in range(1, len(weight)):
            total = total + windows[..., tap] * weight[tap]
        return self._model.product(gate * (total if bias is None else total + bias), f"{layer}.conv_out")

    def _mask(self, length: int, window: int, dtype: torch.dtype) -> Tensor | None:
        """Return what is added to the scores [.., L, L] of a text; None for nothing."""
        if self._config.bidirectional and not window and self._bias is None and self._slopes is None:
            return None
        places = torch.arange(length, device=self._device)
        distance = places[None] - places[:, None]  # of keys from queries
        hidden = torch.zeros_like(distance, dtype=torch.bool)
        if not self._config.bidirectional:
            hidden |= distance > 0
        if window:
            hidden |= distance.abs() >= window
        added = torch.zeros(1, length, length, device=self._device)
        if self._bias is not None:
            most = self._bias.shape[1] // 2
            added = self._bias[:, distance.clamp(-most, most) + most]
        if self._slopes is not None:
            added = added - distance.abs() * self._slopes
        return added.masked_fill(hidden, float("-inf")).to(dtype)[None]
