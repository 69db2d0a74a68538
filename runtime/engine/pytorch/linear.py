"""Linear layers whose results do not depend on the batch size. They take nearly all of the computing time."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_DOUBLINGS = 3  # candidate product sizes are the tile and this many doublings of it


class BatchInvariantLinear:
    """Batch-invariant products with the weight matrices of a model.

    A library may choose another kernel for another number of rows, which may sum in another order. So every product is
    composed of products with a few fixed numbers of rows. At construction each of these sizes is compared with the
    smallest one on the model's own matrices, and only sizes with bit-identical results are used.

    Args:
        matrices: name -> [N, K] weights, all of one dtype on one device.
        biases: name -> [N] bias, for matrices that have one.
        tile: the smallest number of rows; 0 multiplies all rows at once, without batch invariance.
        wide: names of the matrices whose products are float32. On CUDA a 16-bit matrix is used as it is, since cuBLAS
            can output its float32 sums; oneDNN through torch rounds them to 16 bits, so elsewhere the matrix is kept
            in float32.
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
        reorder = torch.ops.mkldnn._reorder_linear_weight  # converts to oneDNN's layout once instead of at every call
        self._matrices = {
            name: reorder(weight, tile or None) if name in self._packed else weight for name, weight in plain.items()
        }
        self._sizes = self._agreeing(plain, tile) if tile else []  # largest first

    def __call__(self, x: Tensor, name: str) -> Tensor:
        """Multiply by a weight matrix and add its bias.

        Args:
            x: [M, K] inputs, M a multiple of the tile.
            name: name of the matrix [N, K].

        Returns:
            [M, N] outputs; float32 if the matrix is one of ``wide``, else of the matrices' dtype.
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
        """Return the numbers of rows whose products are bit-identical to those of ``tile`` rows, largest first."""
        sizes = [tile << i for i in range(_DOUBLINGS, -1, -1)]
        shapes = {weight.shape: (name, weight) for name, weight in matrices.items()}
        generator = torch.Generator().manual_seed(0)
        for name, weight in shapes.values():
            x = torch.randn(sizes[0], weight.shape[1], generator=generator).to(weight.device, weight.dtype)
            small = torch.cat([self._product(part, name) for part in torch.split(x, tile)])
            sizes = [size for size in sizes if torch.equal(self._product(x[:size], name), small[:size])]
        return sizes


def widen_head(model: Any) -> int:
    """Make a transformers model compute its logits in float32.

    If its output embedding is a plain 16-bit linear layer, the layer's forward is replaced by a
    ``BatchInvariantLinear`` product in float32 (``wide``). Later operations on the logits (a scale, a soft cap) then
    run in float32, too.

    Args:
        model: the model on its device; changed in place.

    Returns:
        Additional memory in bytes.
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
    if not tied:  # the 16-bit weight is not used any more
        added -= weight.nbytes
        head.weight.data = weight.new_empty(0)
    return added


def _packs(weight: Tensor) -> bool:
    """Whether oneDNN can keep a weight in its own layout on this machine."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return weight.dtype == torch.float32 or (
        weight.dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )
