"""Matrices that keep the types of a GGUF file: packed for the kernels without any change of a weight."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize as expected_values

from runtime.loading.gguf_blocks import matrix_kind, pack_rows
from runtime.loading.gguf_quants import QUANTIZATIONS
from runtime.model.block_formats import BLOCK_KINDS, FORMATS, BlockKind
from runtime.model.packing import Packed, packed_bytes, unpack
from tests.support.gguf_models import random_blocks

NUMBERS = {rule.name: number for number, rule in QUANTIZATIONS.items()}


@pytest.mark.parametrize("kind", BLOCK_KINDS)
@pytest.mark.parametrize("rows", [32, 21])
def test_no_weight_changes(kind: BlockKind, rows: int) -> None:
    """The packed values are those of the format's own package to the last bit; rows are padded to whole panels."""
    columns = 3 * FORMATS[kind].columns
    data = random_blocks(gguf.GGMLQuantizationType[kind.upper()], rows, columns, seed=rows)
    packed = pack_rows(data, kind)
    assert packed.nbytes == packed_bytes(rows, columns, kind)
    expected = expected_values(data, gguf.GGMLQuantizationType[kind.upper()])
    assert np.array_equal(unpack(Packed(packed, None), rows, columns, kind), expected)


@pytest.mark.parametrize("kind", BLOCK_KINDS)
def test_memory_is_hardly_more_than_the_files(kind: BlockKind) -> None:
    """At most 3 % more bytes than in the file, 20 % in Q2_K, whose two 4-bit scales are stored as bytes."""
    rule = QUANTIZATIONS[NUMBERS[kind.upper()]]
    more = packed_bytes(16, 256, kind) / (16 * 256 // rule.values * rule.size)
    assert 1 <= more < (1.2 if kind == "q2_k" else 1.05)


def test_types_that_are_served_as_they_are() -> None:
    """Every block format has its type, and numbers keep their width; other types have none."""
    kinds = {name: matrix_kind(number) for name, number in NUMBERS.items()}
    assert {kind for kind in kinds.values() if kind} == {*BLOCK_KINDS, "float32", "float16", "bfloat16"}
    assert kinds["F16"] == "float16"
    assert kinds["MXFP4"] is None
