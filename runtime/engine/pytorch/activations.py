"""Activation functions of the MLP."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.model.config import Activation


def activation(kind: Activation, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return an activation function whose result for a value does not depend on the value's place in the tensor.

    On a CPU torch computes the last values of a tensor, and of each thread's part, without vector instructions. For
    SiLU and GELU that gives other last bits. Its exp, tanh and erf have one result for a value, and sums, products and
    quotients are rounded exactly, so there the functions are composed of these, in float32.

    Args:
        kind: the function's name in the decoder's configuration.
        device: device of the tensors.
    """
    return (_COMPOSED if device.type == "cpu" else _FUSED)[kind]


def _silu(x: Tensor) -> Tensor:
    x = x.float()
    return x / x.neg().exp_().add_(1)


def _gelu(x: Tensor) -> Tensor:
    x = x.float()
    return (x * math.sqrt(0.5)).erf_().add_(1).mul_(x).mul_(0.5)


def _gelu_tanh(x: Tensor) -> Tensor:
    x = x.float()
    inner = (x * x).mul_(x).mul_(0.044715).add_(x).mul_(math.sqrt(2 / math.pi))
    return inner.tanh_().add_(1).mul_(x).mul_(0.5)


def _relu2(x: Tensor) -> Tensor:
    return F.relu(x).square()


_COMPOSED: dict[Activation, Callable[[Tensor], Tensor]] = {
    "silu": _silu,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": F.relu,
    "relu2": _relu2,
}
_FUSED: dict[Activation, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "relu2": _relu2,
}
