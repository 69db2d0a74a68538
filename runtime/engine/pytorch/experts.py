"""Mixtures of experts (arXiv:1701.06538), whose results do not depend on the batch.

The pairs of a token and one of its experts are sorted by expert, and each expert that has pairs multiplies all of its
tokens at once. The number of these is padded, and their products have fixed numbers of rows, as for every other matrix
of the model (``BatchInvariantLinear``): a token gives the same bits whichever tokens share its experts. The numbers of
pairs are read from the device once for each layer. Gathering the weights for each pair instead needs no such read, but
would copy an expert's matrices for each token of a prompt.

A decode step that a CUDA graph captures cannot read from the device. In it every expert multiplies every token, and
each token adds up the outputs of those that it chose, in the same order and so with the same bits. Such a step reads
all weights, which a few rows together need anyway. That this is faster than starting each operation of the chosen
experts from Python is an estimate for small models and has not been measured on a GPU.
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

    def __call__(self, x: Tensor, layer: int, *, every: bool = False) -> tuple[Tensor, Tensor | None]:
        """Compute a layer's mixture.

        Args:
            x: [M, H] inputs, M a multiple of the tile.
            layer: the layer's index.
            every: whether all experts multiply all tokens, so that no operation depends on the choices. The result is
                the same to the bit.

        Returns:
            [M, H] float32 weighted sums of the experts' outputs, and the factors [M, 1] of the shared expert's output;
            None for 1.
        """
        logits = self._router(x, f"{layer}")  # [M, E], or with the shared expert's gate [M, E + 1]
        chosen, factors = choose(logits[:, : self._config.count], self._config, self._corrections.get(layer))
        total = (self._of_all if every else self._of_chosen)(x.to(self._dtype), chosen, factors, layer)
        return total, _sigmoid(logits[:, self._config.count :]) if self._config.shared_gate else None

    def _of_chosen(self, x: Tensor, chosen: Tensor, factors: Tensor, layer: int) -> Tensor:
        """Return the sums [M, H], in the order of the experts, given the choices [M, K] and their factors."""
        pairs = chosen.flatten()
        order = pairs.argsort(stable=True)
        counts: list[int] = torch.bincount(pairs, minlength=self._config.count).tolist()
        weights = factors.flatten()[order, None]
        total = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        spans = zip(torch.split(order // self._config.per_token, counts), torch.split(weights, counts), strict=True)
        for expert, (tokens, weight) in enumerate(spans):
            if len(tokens):
                padded = F.pad(x[tokens], (0, 0, 0, -len(tokens) % self._tile))
                total[tokens] += self._expert(padded, f"{layer}.{expert}")[: len(tokens)] * weight
        return total

    def _of_all(self, x: Tensor, chosen: Tensor, factors: Tensor, layer: int) -> Tensor:
        """Return what ``_of_chosen`` does, by operations that do not depend on the choices."""
        total = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        for expert in range(self._config.count):
            matches = chosen == expert  # [M, K], at most one in a row
            weight = torch.where(matches, factors, 0).sum(1, keepdim=True)
            added = total + self._expert(x, f"{layer}.{expert}") * weight
            total = torch.where(matches.any(1, keepdim=True), added, total)
        return total

    def _expert(self, x: Tensor, name: str) -> Tensor:
        """Return [N, H] the outputs of one expert for inputs [N, H], N a multiple of the tile."""
        gate, up = self._product(x, f"{name}.gate_up").chunk(2, dim=1)
        return self._product(self._activation(gate) * up, f"{name}.down")


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
