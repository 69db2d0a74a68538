"""Packs the quantized blocks of GGUF files as ``runtime.model.block_formats`` describes, without changing a weight."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from runtime.loading.gguf_quants import BLOCK_KINDS_BY_NAME, QUANTIZATIONS
from runtime.model.block_formats import BlockKind, Blocks, pack_blocks
from runtime.model.packing import PANEL_ROWS, MatrixKind

Bytes = NDArray[np.uint8]

_KINDS: dict[str, MatrixKind] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", **BLOCK_KINDS_BY_NAME}


def matrix_kind(number: int) -> MatrixKind | None:
    """Return the format in which a matrix of a GGUF type is served unchanged; None if there is none.

    Args:
        number: ggml's number of the type, one of ``QUANTIZATIONS``.
    """
    return _KINDS.get(QUANTIZATIONS[number].name)


def pack_rows(rows: Bytes, kind: BlockKind) -> Bytes:
    """Pack rows of a GGUF tensor into panels; missing rows of the last panel are zeros.

    Args:
        rows: the rows' blocks [N, bytes of a row].
        kind: their type.

    Returns:
        The panels' bytes, flat.
    """
    missing = -len(rows) % PANEL_ROWS
    if missing:
        rows = np.concatenate([rows, np.zeros((missing, rows.shape[1]), np.uint8)])
    rule = next(rule for rule in QUANTIZATIONS.values() if rule.name == kind.upper())
    if rule.split is None:
        raise ValueError(f"blocks of {rule.name} cannot be taken apart")
    found = rule.split(np.ascontiguousarray(rows).reshape(-1, rule.size))
    count = len(rows)

    def by_row(numbers: NDArray[np.generic] | None) -> NDArray[np.generic] | None:
        return None if numbers is None else numbers.reshape(count, -1)

    whole = Blocks(
        found.codes.reshape(count, -1),
        found.scales.reshape(count, -1),
        by_row(found.minima),
        by_row(found.factors),
        by_row(found.minimum_factors),
    )
    return pack_blocks(whole, kind)
