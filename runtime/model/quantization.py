"""How a checkpoint's weights are quantized: the ``quantization_config`` of AWQ and GPTQ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from runtime.model.config import UnsupportedDecoder

_STEP = 32  # columns that share a scale in the formats to which weights are packed


@dataclass(frozen=True, slots=True)
class CheckpointQuantization:
    """A scheme of 4-bit weights, (code - zero) x scale, with a scale and a zero for each group of a row's columns.

    Args:
        method: ``awq`` (AutoAWQ's layout "gemm") or ``gptq`` (AutoGPTQ's and GPTQModel's), which pack the codes of a
            matrix in different orders.
        group: columns of a group; 0 for all columns.
        zero_offset: what is added to a stored zero: 1 in GPTQ's first format.
    """

    method: Literal["awq", "gptq"]
    group: int
    zero_offset: int


def read_quantization(config: Mapping[str, Any]) -> CheckpointQuantization | None:
    """Read the quantization of a ``config.json``; None if its weights are not quantized.

    Raises:
        UnsupportedDecoder: weights are quantized in another way.
    """
    found = config.get("quantization_config")
    if not found:
        return None
    method = found.get("quant_method")
    if method not in ("awq", "gptq"):
        raise UnsupportedDecoder(f"weights that are quantized in the checkpoint by {method}")
    bits = found.get("bits", found.get("w_bit"))
    group = found.get("group_size", found.get("q_group_size", 128))
    if bits != 4:
        raise UnsupportedDecoder(f"weights that are quantized by {method} to {bits} bits instead of 4")
    if group != -1 and (type(group) is not int or group <= 0 or group % _STEP):
        raise UnsupportedDecoder(
            f"weights that are quantized by {method} in groups of {group}, not a multiple of {_STEP}"
        )
    if method == "awq":
        version = str(found.get("version", "gemm")).lower()
        if version != "gemm" or not found.get("zero_point", True):
            raise UnsupportedDecoder(
                f"weights that are quantized by awq in the version {version}, or without zero points"
            )
        return CheckpointQuantization("awq", max(group, 0), 0)
    form = found.get("checkpoint_format", "gptq")
    if form not in ("gptq", "gptq_v2"):
        raise UnsupportedDecoder(f"weights that are quantized by gptq in the format {form}")
    return CheckpointQuantization("gptq", max(group, 0), 1 if form == "gptq" else 0)
