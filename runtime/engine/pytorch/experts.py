"""Mixtures of experts (arXiv:1701.06538), whose results do not depend on the batch.

The pairs of a token and one of its experts are sorted by expert, and each expert that has pairs multiplies all of its
tokens at once. The number of these is padded, and their products have fixed numbers of rows, as for every other matrix
of the model (``BatchInvariantLinear``): a token gives the same bits whichever tokens share its experts. The numbers of
pairs are read from the device once for each layer. Gathering the weights for each pair instead needs no such read, but
would copy an expert's matrices for each token of a prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.engine.pytorch.linear import BatchInvariantLinear
from runtime.model.config import DecoderConfig, ExpertsConfig
from runtime.model.packing import PANEL_ROWS


class Experts:
    """The mixtures of experts of a model, without their shared experts.

    Args:
        config: the model's configuration, with experts.
        weights: the model's tensors.
        activation: the activation function.
        tile: smallest number of rows per product, 0 for products of any size; see ``BatchInvariantLinear``.
    """

    def __init__(
        self,
        config: DecoderConfig,
        weights: Mapping[str, Tensor],
        activation: Callable[[Tensor], Tensor],
        tile: int,
    ) -> None:
        assert config.experts is not None
        self._config, self._activation = config.experts, activation
        self._tile = max(tile, 1)
        layers = [i for i, layer in enumerate(config.layers) if layer.experts]
        # The gate of the shared expert is computed as one more row of the router.
        rows = ("router", "shared_gate") if self._config.shared_gate else ("router",)
        routers = {
            f"{i}": torch.cat([weights[f"{i}.{row}"].float().view(-1, config.hidden) for row in rows]) for i in layers
        }
        self._router = BatchInvariantLinear(routers, {}, tile)
        self._corrections = {i: weights[f"{i}.router_correction"].float() for i in layers if self._config.correction}
        matrices = {}
        for i in layers:
            for e, expert in enumerate(weights[f"{i}.experts_gate_up"].chunk(self._config.count)):
                matrices[f"{i}.{e}.gate_up"] = halves(expert, self._config.intermediate)
            for e, expert in enumerate(weights[f"{i}.experts_down"].chunk(self._config.count)):
                matrices[f"{i}.{e}.down"] = expert[: config.hidden]
        self._dtype = matrices[f"{layers[0]}.0.down"].dtype
        self._product = BatchInvariantLinear(matrices, {}, tile)

    def __call__(self, x: Tensor, layer: int) -> tuple[Tensor, Tensor | None]:
        """Compute a layer's mixture.

        Args:
            x: [M, H] inputs, M a multiple of the tile.
            layer: the layer's index.

        Returns:
            [M, H] float32 weighted sums of the experts' outputs, and the factors [M, 1] of the shared expert's output;
            None for 1.
        """
        logits = self._router(x, f"{layer}")  # [M, E], or with the shared expert's gate [M, E + 1]
        chosen, factors = choose(logits[:, : self._config.count], self._config, self._corrections.get(layer))
        outputs = self._outputs(x.to(self._dtype), chosen.flatten(), layer).view(*chosen.shape, -1)  # [M, K, H]
        total = outputs[:, 0].float() * factors[:, :1]
        for k in range(1, self._config.per_token):  # in a fixed order, whatever the number of tokens
            total = total + outputs[:, k] * factors[:, k : k + 1]
        return total, _sigmoid(logits[:, self._config.count :]) if self._config.shared_gate else None

    def _outputs(self, x: Tensor, chosen: Tensor, layer: int) -> Tensor:
        """Return [M K, H] the output of the expert of each pair, given the tokens [M, H] and the experts [M K]."""
        order = chosen.argsort(stable=True)  # pairs by expert
        counts: list[int] = torch.bincount(chosen, minlength=self._config.count).tolist()
        outputs = x.new_empty(len(chosen), x.shape[1])
        for expert, pairs in enumerate(torch.split(order, counts)):
            if len(pairs):
                outputs[pairs] = self._expert(x[pairs // self._config.per_token], f"{layer}.{expert}")
        return outputs

    def _expert(self, x: Tensor, name: str) -> Tensor:
        """Return [N, H] the outputs of one expert, of inputs [N, H] of any number."""
        padded = F.pad(x, (0, 0, 0, -len(x) % self._tile))
        gate, up = self._product(padded, f"{name}.gate_up").chunk(2, dim=1)
        return self._product(self._activation(gate) * up, f"{name}.down")[: len(x)]


def choose(logits: Tensor, config: ExpertsConfig, correction: Tensor | None) -> tuple[Tensor, Tensor]:
    """Choose the experts of tokens; of equal ones those with the smaller index, which ``torch.topk`` does not promise.

    Args:
        logits: [M, E] float32 logits of the router.
        config: the mixture's configuration.
        correction: [E] what is added to the scores for the choice, or None.

    Returns:
        [M, K] chosen experts, that with the largest score first, and the float32 factors [M, K] of their outputs.
    """
    scores = logits.softmax(1) if config.scores == "softmax" else _sigmoid(logits)
    ranked = scores if correction is None else scores + correction
    chosen = ranked.sort(dim=1, descending=True, stable=True).indices[:, : config.per_token]
    factors = scores.gather(1, chosen)
    if config.normalized:
        total = factors[:, :1]
        for k in range(1, config.per_token):
            total = total + factors[:, k : k + 1]
        factors = factors / total
    return chosen, factors if config.scale == 1 else factors * config.scale


def halves(interleaved: Tensor, rows: int) -> Tensor:
    """Deinterleave alternating panels of gate and up projection: all gate rows, then all up rows, without padding."""
    panels = interleaved.view(-1, 2, PANEL_ROWS, *interleaved.shape[1:])
    return torch.cat([panels[:, 0].flatten(0, 1)[:rows], panels[:, 1].flatten(0, 1)[:rows]])


def _sigmoid(x: Tensor) -> Tensor:
    """Sigmoid of operations whose result for a value does not depend on its place, see ``activations.activation``."""
    return 1 / (1 + torch.exp(-x))
