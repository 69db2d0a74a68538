"""Quantization to 4 bits: what it finds again, how near it comes, and which matrices get it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.loading.four_bits import FOUR_BIT_KINDS, FourBitKind, four_bit_kind, pack_four_bits
from runtime.model.block_formats import unpack_blocks
from tests.support.engines import snapshot_of
from tests.support.models import save_tiny_gguf, save_tiny_llama


def restored(values: NDArray[np.float32], kind: FourBitKind) -> NDArray[np.float32]:
    return unpack_blocks(pack_four_bits(values, kind), *values.shape, kind)


def by_range(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The groups of 32 in 15 even steps from their least to their largest value."""
    groups = values.reshape(-1, 32)
    low = np.minimum(groups.min(axis=1, keepdims=True), 0)
    scale = (groups.max(axis=1, keepdims=True) - low) / 15
    return (np.rint((groups - low) / scale) * scale + low).reshape(values.shape)


@pytest.mark.parametrize("kind", FOUR_BIT_KINDS)
def test_the_error_is_less_than_that_of_even_steps(kind: FourBitKind) -> None:
    """The search gains a tenth of the squared error, though scales are rounded; rows are padded to whole panels."""
    values = np.random.default_rng(1).standard_t(5, (21, 512)).astype(np.float32)
    error = np.square(restored(values, kind) - values).mean()
    assert error < 0.9 * np.square(by_range(values) - values).mean()


def test_values_of_16_even_steps_are_found_again() -> None:
    """A matrix that was quantized in the same groups before loses nothing but the rounding of scales."""
    dice = np.random.default_rng(2)
    codes = dice.integers(0, 16, (16, 4, 32)).astype(np.float32)
    codes[:, :, :2] = 0, 15
    values = (codes * 0.25 - dice.integers(0, 9, (16, 4, 1)) * 0.25).astype(np.float32).reshape(16, 128)
    assert np.array_equal(restored(values, "q4_1"), values)


@pytest.mark.parametrize("kind", FOUR_BIT_KINDS)
def test_zeros_and_single_signs(kind: FourBitKind) -> None:
    """Zeros stay zeros, and groups of one sign or one value are not lost."""
    values = np.zeros((16, 256), np.float32)
    values[1], values[2], values[3, 32:64] = 0.5, -0.5, np.linspace(1, 2, 32)
    found = restored(values, kind)
    assert np.array_equal(found[0], values[0])
    assert np.abs(found - values).max() < 2 / 15


def test_the_width_decides_the_format() -> None:
    """Scales are numbers of 8 bits where a row has whole blocks of 256."""
    assert [four_bit_kind(columns) for columns in (512, 576, 48)] == ["q4_k", "q4_1", None]


def test_sensitive_matrices_have_8_bits(tmp_path: Path) -> None:
    """Embedding, head, values and down; the others have 4, in any source."""
    shape = {"hidden_size": 96, "intermediate_size": 256}
    folder = save_tiny_llama(tmp_path / "m", **shape, tie_word_embeddings=False)
    tied = save_tiny_llama(tmp_path / "tied", **shape)
    for source in (folder, save_tiny_gguf(tmp_path / "m.gguf", tied)):
        snapshot = snapshot_of(source, "int4")
        kinds = {name: snapshot.matrix_kind(name) for name in snapshot if snapshot.is_matrix(name)}
        eight = {name for name, kind in kinds.items() if kind == "int8"}
        assert eight == {
            "embed",
            *(["head"] if source == folder else []),
            *(f"{i}.{part}" for i in range(2) for part in ("qkv.v", "down")),
        }
        assert set(kinds.values()) == {"int8", "q4_1"}
