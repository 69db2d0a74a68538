"""Which quantized checkpoints are read, and which are refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.model.config import UnsupportedDecoder
from runtime.model.quantization import CheckpointQuantization, read_quantization

AWQ = {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "GEMM", "zero_point": True}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": True, "sym": True}


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (None, None),
        (AWQ, CheckpointQuantization("awq", 64, 0)),
        ({"quant_method": "awq", "w_bit": 4, "q_group_size": 32}, CheckpointQuantization("awq", 32, 0)),
        (GPTQ, CheckpointQuantization("gptq", 128, 1)),
        ({**GPTQ, "group_size": -1}, CheckpointQuantization("gptq", 0, 1)),
        ({**GPTQ, "checkpoint_format": "gptq_v2"}, CheckpointQuantization("gptq", 128, 0)),
    ],
)
def test_schemes_of_4_bits_are_read(found: Any, expected: CheckpointQuantization | None) -> None:
    """Under the names that either tool writes."""
    assert read_quantization({"quantization_config": found}) == expected


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"quant_method": "bitsandbytes", "bits": 4}, "by bitsandbytes"),
        ({**GPTQ, "bits": 8}, "by gptq to 8 bits"),
        ({**AWQ, "group_size": 16}, "groups of 16"),
        ({**AWQ, "version": "gemv"}, "version gemv"),
        ({**AWQ, "zero_point": False}, "without zero points"),
        ({**GPTQ, "checkpoint_format": "marlin"}, "format marlin"),
    ],
)
def test_others_are_refused_by_name(found: Any, said: str) -> None:
    """None would be read as something that it is not."""
    with pytest.raises(UnsupportedDecoder, match=said):
        read_quantization({"quantization_config": found})
