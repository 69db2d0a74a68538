"""Stacks of experts in GGUF files: served in the file's types, or read a few rows at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize

from runtime.loading.convert import convert
from runtime.loading.file_types import FileTypes
from runtime.loading.gguf_families import read_gguf
from runtime.loading.gguf_source import open_gguf
from runtime.model.block_formats import BLOCK_KINDS, FORMATS, BlockKind
from runtime.model.packing import Packed, unpack
from tests.runtime.loading.test_gguf_experts import CASES
from tests.support.gguf_cases import RMS, Case, saved
from tests.support.gguf_models import save_mixed


def wide(columns: int) -> Case:
    """A model whose matrices have widths of whole blocks, and an expert's rows are no whole panels if they may be."""
    width = columns if columns > 32 else 3 * columns
    return Case(
        "qwen3moe",
        "qwen3_moe",
        {
            "hidden_size": columns * 2,
            "head_dim": 64,
            "num_hidden_layers": 1,
            "num_experts": 3,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": width,
            "norm_topk_prob": True,
        },
        {
            RMS: 1e-6,
            "attention.key_length": 64,
            "attention.value_length": 64,
            "expert_count": 3,
            "expert_used_count": 2,
            "expert_feed_forward_length": width,
        },
    )


def stored(file: Path, name: str) -> Any:
    """The values of a stack in a file as ``gguf`` converts them."""
    (tensor,) = [tensor for tensor in gguf.GGUFReader(file).tensors if tensor.name == name]
    return dequantize(tensor.data, tensor.tensor_type).reshape(*reversed(tensor.shape.tolist()))


@pytest.mark.parametrize("kind", BLOCK_KINDS)
def test_stacks_keep_their_codes(kind: BlockKind, tmp_path: Path) -> None:
    """Every type, in each of the three stacks: the packed values are those of the ``gguf`` package to the last bit."""
    saved(wide(FORMATS[kind].columns), tmp_path / "float.gguf")
    file = save_mixed(tmp_path / "float.gguf", tmp_path / "model.gguf", [kind.upper()])
    header, source = open_gguf(file)
    decoder, layout, _, _ = read_gguf(header)
    weights = {w.name: w for w in convert(decoder, layout, source, types=FileTypes(source, "model"))}
    for part, tensor in (("gate_up.gate", "gate"), ("gate_up.up", "up"), ("down", "down")):
        weight = weights[f"0.experts_{part}"]
        assert weight.kind == kind
        assert weight.pack_rows is not None
        rows, columns = weight.shape
        cut = rows // 32 * 16  # the rows of one expert are in both pieces
        packed = np.concatenate([weight.pack_rows(0, cut), weight.pack_rows(cut, rows)])
        expected = stored(file, f"blk.0.ffn_{tensor}_exps.weight")
        assert np.array_equal(unpack(Packed(packed, None), rows, columns, kind), expected.reshape(rows, columns))


def test_rows_of_an_expert_are_padded_to_panels(tmp_path: Path) -> None:
    """Stacks of 24 rows in Q8_0: codes unchanged, and eight rows of zeros after each expert's."""
    saved(CASES["qwen2moe"], tmp_path / "float.gguf")
    file = save_mixed(tmp_path / "float.gguf", tmp_path / "model.gguf", ["Q8_0"])
    header, source = open_gguf(file)
    decoder, layout, _, _ = read_gguf(header)
    weights = {w.name: w for w in convert(decoder, layout, source, types=FileTypes(source, "model"))}
    weight = weights["1.experts_gate_up.up"]
    assert weight.kind == "q8_0"
    assert weight.pack_rows is not None
    assert weight.shape == (6 * 32, 64)
    found = unpack(Packed(weight.pack_rows(0, 6 * 32), None), 6 * 32, 64, "q8_0").reshape(6, 32, 64)
    assert np.array_equal(found[:, :24], stored(file, "blk.1.ffn_up_exps.weight"))
    assert not found[:, 24:].any()


def test_stacks_are_read_row_by_row(tmp_path: Path) -> None:
    """Stacks that are converted: pieces of any rows are those of the whole matrix."""
    saved(CASES["qwen2moe"], tmp_path / "float.gguf")
    file = save_mixed(tmp_path / "float.gguf", tmp_path / "model.gguf", ["Q8_0"])
    header, source = open_gguf(file)
    decoder, layout, _, _ = read_gguf(header)
    stacks = [weight for weight in convert(decoder, layout, source) if ".experts_" in weight.name]
    assert len(stacks) == 8
    for weight in stacks:
        assert weight.read_rows is not None
        whole, rows = weight.read(), weight.shape[0]
        assert whole.shape == weight.shape
        pieces = [weight.read_rows(start, min(start + 80, rows)) for start in range(0, rows, 80)]
        assert np.array_equal(np.concatenate(pieces), whole)
