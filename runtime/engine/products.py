"""Products with the weight matrices, which is where nearly all time goes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

_DOUBLINGS = 3  # of the tile that are tried


class Products:
    """The matrices of a model, ready for one device.

    A library picks another kernel for another number of rows, and that one may add in another order. So all products
    are made of products of a few fixed numbers of rows, and at the start each of those is held against the smallest
    with these very matrices: only what gives the same bits is used.

    Args:
        matrices: name -> [N, K], all of one dtype on one device.
        biases: name -> [N], for those that have one.
        tile: the smallest number of rows; 0 takes all rows at once, whatever the bits.
    """

    def __init__(self, matrices: Mapping[str, Tensor], biases: Mapping[str, Tensor], tile: int) -> None:
        self._biases = biases
        self._packed = _packs(next(iter(matrices.values())))
        if self._packed:  # reordered once for oneDNN instead of at every call
            reorder = torch.ops.mkldnn._reorder_linear_weight
            self._matrices = {name: reorder(weight, tile or None) for name, weight in matrices.items()}
        else:
            self._matrices = dict(matrices)
        self._sizes = self._agreeing(matrices, tile) if tile else []  # largest first

    def __call__(self, x: Tensor, name: str) -> Tensor:
        """Multiply.

        Args:
            x: [M, K], M a multiple of the tile.
            name: of the matrix [N, K].

        Returns:
            [M, N], the bias added.
        """
        if not self._sizes or len(x) in self._sizes:
            return self._product(x, name)
        parts, left = [], len(x)
        for size in self._sizes:
            parts += [size] * (left // size)
            left %= size
        return torch.cat([self._product(part, name) for part in torch.split(x, parts)])

    def _product(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self._matrices[name], self._biases.get(name)
        if self._packed:
            return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # type: ignore[no-any-return]
        return F.linear(x, weight, bias)

    def _agreeing(self, matrices: Mapping[str, Tensor], tile: int) -> list[int]:
        sizes = [tile << i for i in range(_DOUBLINGS, -1, -1)]
        shapes = {weight.shape: (name, weight) for name, weight in matrices.items()}
        generator = torch.Generator().manual_seed(0)
        for name, weight in shapes.values():
            x = torch.randn(sizes[0], weight.shape[1], generator=generator).to(weight.device, weight.dtype)
            small = torch.cat([self._product(part, name) for part in torch.split(x, tile)])
            sizes = [size for size in sizes if torch.equal(self._product(x[:size], name), small[:size])]
        return sizes


def _packs(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return weight.dtype == torch.float32 or (
        weight.dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )
