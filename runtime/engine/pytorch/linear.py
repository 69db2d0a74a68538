"""Products with the weight matrices, which is where nearly all time goes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_DOUBLINGS = 3  # of the tile that are tried


class BatchInvariantLinear:
    """The matrices of a model, ready for one device.

    A library picks another kernel for another number of rows, and that one may add in another order. So all products
    are made of products of a few fixed numbers of rows, and at the start each of those is held against the smallest
    with these very matrices: only what gives the same bits is used.

    Args:
        matrices: name -> [N, K], all of one dtype on one device.
        biases: name -> [N], for those that have one.
        tile: the smallest number of rows; 0 takes all rows at once, whatever the bits.
        wide: names of the matrices whose products are float32. On CUDA a 16-bit matrix is used as it is, since cuBLAS
            writes its float32 sums; oneDNN through torch rounds them to 16 bits, so elsewhere the matrix is kept in
            float32.
    """

    def __init__(
        self, matrices: Mapping[str, Tensor], biases: Mapping[str, Tensor], tile: int, wide: Collection[str] = ()
    ) -> None:
        self._biases = {name: bias.float() if name in wide else bias for name, bias in biases.items()}
        self._wide = {name for name in wide if matrices[name].device.type == "cuda" and matrices[name].itemsize == 2}
        plain = {
            name: weight.float() if name in wide and name not in self._wide else weight
            for name, weight in matrices.items()
        }
        self._packed = {name for name, weight in plain.items() if _packs(weight)}
        reorder = torch.ops.mkldnn._reorder_linear_weight  # once for oneDNN instead of at every call
        self._matrices = {
            name: reorder(weight, tile or None) if name in self._packed else weight for name, weight in plain.items()
        }
        self._sizes = self._agreeing(plain, tile) if tile else []  # largest first

    def __call__(self, x: Tensor, name: str) -> Tensor:
        """Multiply.

        Args:
            x: [M, K], M a multiple of the tile.
            name: of the matrix [N, K].

        Returns:
            [M, N], the bias added; float32 if the matrix is one of ``wide``, else of the matrices' dtype.
        """
        x = x.to(self._matrices[name].dtype)
        if not self._sizes or len(x) in self._sizes:
            return self._product(x, name)
        parts, left = [], len(x)
        for size in self._sizes:
            parts += [size] * (left // size)
            left %= size
        return torch.cat([self._product(part, name) for part in torch.split(x, parts)])

    def _product(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self._matrices[name], self._biases.get(name)
        if name in self._wide:
            sums = torch.mm(x, weight.t(), out_dtype=torch.float32)
            return sums if bias is None else sums + bias
        if name in self._packed:
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


def widen_head(model: Any) -> int:
    """Have a model of transformers give float32 logits.

    Its output embedding, if that is a plain linear layer in 16 bits, is computed as one of
    ``BatchInvariantLinear.wide``. What the model does behind it (a scale, a soft cap) is then done in float32, too.

    Args:
        model: on its device; changed in place.

    Returns:
        Bytes of memory that this takes.
    """
    head = model.get_output_embeddings()
    if type(head) is not torch.nn.Linear or head.weight.itemsize != 2:
        return 0
    weight = head.weight.detach()
    product = BatchInvariantLinear(
        {"head": weight}, {} if head.bias is None else {"head": head.bias.detach()}, 0, wide=["head"]
    )

    def forward(x: Tensor) -> Tensor:  # [..., H] -> [..., V]
        return product(x.reshape(-1, x.shape[-1]), "head").view(*x.shape[:-1], -1)

    vars(head).update(forward=forward)
    if weight.device.type == "cuda":
        return 0
    added = 2 * weight.nbytes
    tied = sum(parameter is head.weight for _, parameter in model.named_parameters(remove_duplicate=False)) > 1
    if not tied:  # nobody reads it any more
        added -= weight.nbytes
        head.weight.data = weight.new_empty(0)
    return added


def _packs(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return weight.dtype == torch.float32 or (
        weight.dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )
