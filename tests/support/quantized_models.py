"""Writes checkpoints of 4-bit weights in the layouts of AutoAWQ (``WQLinear_GEMM``) and AutoGPTQ (``QuantLinear``)."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True)
class Matrix:
    """A quantized matrix [N, K]: codes [N, K], zeros and scales [N, groups], and each column's group [K]."""

    codes: NDArray[Any]
    zeros: NDArray[Any]
    scales: NDArray[Any]
    groups: NDArray[Any]

    @property
    def values(self) -> NDArray[np.float32]:
        """What the weights are: (code - zero) x scale."""
        steps = self.codes.astype(np.float32) - self.zeros[:, self.groups]
        values: NDArray[np.float32] = steps * self.scales.astype(np.float32)[:, self.groups]
        return values


def quantized(weight: NDArray[np.float32], group: int, *, symmetric: bool, order: NDArray[Any] | None = None) -> Matrix:
    """Quantize a matrix; with ``order``, columns are in groups in that order, as with GPTQ's ``desc_act``."""
    n, k = weight.shape
    size = k if group == -1 else group
    groups = np.empty(k, np.int32)
    groups[np.arange(k) if order is None else order] = np.arange(k) // size
    scales, zeros = np.empty((n, k // size), np.float16), np.empty((n, k // size), np.int32)
    for g in range(k // size):
        part = weight[:, groups == g]
        if symmetric:
            scales[:, g] = np.abs(part).max(axis=1) / 7.5
            zeros[:, g] = 8
        else:
            low, high = np.minimum(part.min(axis=1), 0), np.maximum(part.max(axis=1), 0)
            scales[:, g] = (high - low) / 15
            zeros[:, g] = np.clip(np.rint(-low / scales[:, g]), 1, 15)
    steps = np.rint(weight / scales.astype(np.float32)[:, groups]) + zeros[:, groups]
    return Matrix(np.clip(steps, 0, 15).astype(np.int64), zeros, scales, groups)


def _words(numbers: NDArray[Any], order: tuple[int, ...] = tuple(range(8))) -> NDArray[np.int32]:
    """Pack each eight numbers of a row in a word: that of index ``order[i]`` at the bits from 4 i on."""
    eights = numbers.astype(np.uint32).reshape(len(numbers), -1, 8)
    words = np.zeros(eights.shape[:2], np.uint32)
    for i, place in enumerate(order):
        words |= eights[:, :, place] << np.uint32(4 * i)
    return words.view(np.int32)


def tensors(matrix: Matrix, method: Literal["awq", "gptq", "gptq_v2"]) -> dict[str, NDArray[Any]]:
    """Return a matrix's tensors by the last part of their names."""
    scales = np.ascontiguousarray(matrix.scales.T)
    if method == "awq":
        found = {"qweight": _words(matrix.codes.T, AWQ_ORDER), "qzeros": _words(matrix.zeros.T, AWQ_ORDER)}
        return {**found, "scales": scales}
    zeros = matrix.zeros.T - (1 if method == "gptq" else 0)
    words = np.ascontiguousarray(_words(matrix.codes).T)
    return {"qweight": words, "qzeros": _words(zeros), "scales": scales, "g_idx": matrix.groups.astype(np.int32)}


def save_quantized(
    source: Path,
    folder: Path,
    method: Literal["awq", "gptq", "gptq_v2"],
    group: int,
    *,
    symmetric: bool = False,
    act_order: bool = False,
) -> dict[str, NDArray[np.float32]]:
    """Write a model's checkpoint with the matrices of its layers quantized.

    Args:
        source: the model's folder.
        folder: the new folder.
        method: the layout.
        group: columns of a group; -1 for all.
        symmetric: whether zero has the code 8 everywhere.
        act_order: whether columns are in groups in a random order.

    Returns:
        All tensors with the values that their codes stand for.
    """
    from safetensors.numpy import load_file, save_file

    shutil.copytree(source, folder)
    state, values = {}, {}
    dice = np.random.default_rng(3)
    for name, tensor in load_file(source / "model.safetensors").items():
        if tensor.ndim != 2 or ".layers." not in name:
            state[name] = values[name] = tensor.astype(np.float32)
            continue
        order = dice.permutation(tensor.shape[1]) if act_order else None
        matrix = quantized(tensor.astype(np.float32), group, symmetric=symmetric, order=order)
        values[name] = matrix.values
        base = name.removesuffix("weight")
        state |= {base + part: array for part, array in tensors(matrix, method).items()}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_bytes())
    if method == "awq":
        scheme = {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm", "zero_point": True}
    else:
        scheme = {"quant_method": "gptq", "bits": 4, "group_size": group, "desc_act": act_order, "sym": symmetric}
        scheme["checkpoint_format"] = method
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": scheme}))
    return values
