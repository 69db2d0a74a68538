"""Quantized blocks of GGUF files as numbers: those of the format's own package."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize as expected_values

from runtime.loading.gguf_quants import QUANTIZATIONS, dequantize

_KINDS = {rule.name: kind for kind, rule in QUANTIZATIONS.items()}


@pytest.mark.parametrize("name", _KINDS)
def test_blocks_give_the_numbers_of_the_formats_own_package(name: str) -> None:
    """Bit for bit, for blocks of random bytes."""
    kind = _KINDS[name]
    rule = QUANTIZATIONS[kind]
    blocks = np.random.default_rng(kind).integers(0, 256, (600, rule.size), np.uint8)
    with np.errstate(all="ignore"):
        expected = expected_values(blocks, gguf.GGMLQuantizationType(kind))
        assert np.array_equal(dequantize(blocks, kind), expected.astype(np.float32), equal_nan=True)


@pytest.mark.parametrize("name", _KINDS)
def test_sizes_of_blocks_are_the_formats(name: str) -> None:
    """A wrong one would misplace every tensor."""
    rule = QUANTIZATIONS[_KINDS[name]]
    assert gguf.GGMLQuantizationType[name] == _KINDS[name]
    assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]] == (rule.values, rule.size)
