"""RMSNorm (arXiv:1910.07467) and LayerNorm (arXiv:1607.06450), in float32."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from runtime.model.config import DecoderConfig


class Norms:
    """The norms of a model.

    Args:
        config: the decoder's configuration.
        weights: the model's tensors; those of norms are copied in float32.
    """

    def __init__(self, config: DecoderConfig, weights: Mapping[str, Tensor]) -> None:
        self._config = config
        names = ("norm.weight", "norm.bias")
        self._weights = {name: weight.float() for name, weight in weights.items() if name.endswith(names)}

    def __call__(self, x: Tensor, name: str) -> Tensor:
        """Normalize the rows of ``x`` [M, H] by the norm of that name. Returns [M, H] float32."""
        weight, bias = self._weights[f"{name}.weight"], self._weights.get(f"{name}.bias")
        return self._normalize(x.float(), weight, bias)

    def heads(self, x: Tensor, name: str) -> Tensor:
        """Normalize queries or keys by head or over all heads at once, as the configuration says.

        Padding of the heads does not take part; it becomes zeros.

        Args:
            x: [M, N, padded head width] queries or keys.
            name: the norm's name.

        Returns:
            [M, N, padded head width] float32.
        """
        config = self._config
        values = x[..., : config.head_dim].float()  # [M, N, D]
        if config.qk_norm == "full":
            values = self._normalize(values.flatten(1)).view_as(values)
        else:
            values = self._normalize(values)
        values = F.pad(values, (0, x.shape[-1] - config.head_dim)) * self._weights[f"{name}.weight"].view(x.shape[1:])
        bias = self._weights.get(f"{name}.bias")
        return values if bias is None else values + bias.view(x.shape[1:])

    def _normalize(self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        shape, epsilon = x.shape[-1:], self._config.norm_epsilon
        if self._config.norm == "layer":
            return F.layer_norm(x, shape, weight, bias, epsilon)
        normalized = F.rms_norm(x, shape, weight, epsilon)
        return normalized if bias is None else normalized + bias
