"""GGUF files in their own types on the compiled kernels: what they compute, and what is refused."""

from __future__ import annotations

import random
import re
from pathlib import Path

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.engine.native import library
from runtime.engine.native.runner import NativeRunner
from runtime.engine.sequence import Row, Sequence
from runtime.errors import ModelUnavailable
from runtime.model.packing import SnapshotKind
from runtime.types import SamplingParams
from tests.support.engines import Load, needs_kernels, snapshot_of, without_kernels
from tests.support.gguf_models import MIXED_TYPES, save_mixed
from tests.support.models import save_tiny_gguf, save_tiny_llama
from tests.support.quantized_models import save_quantized

LEVELS = {kernels.level: kernels for kernels in library.usable()}
IDS = random.Random(4).choices(range(600), k=50)


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file whose heads are padded, and whose MLP is not as wide as whole panels."""
    folder = tmp_path_factory.mktemp("models")
    shape = {"hidden_size": 96, "intermediate_size": 160, "num_attention_heads": 4, "num_key_value_heads": 2}
    source = save_tiny_gguf(folder / "plain.gguf", save_tiny_llama(folder / "llama", head_dim=24, **shape))
    return save_mixed(source, folder / "narrow.gguf", ["Q8_0", "Q4_0", "Q5_1", "IQ4_NL"])


def logits(file: Path, kind: SnapshotKind, level: str, threads: int = 1) -> NDArray[np.float32]:
    """The logits of one text, computed at once."""
    runner = NativeRunner(
        snapshot_of(file, kind), kv_bytes=4 << 20, max_tokens=256, threads=threads, kernels=LEVELS[level]
    )
    found = runner.logits([whole(IDS)])
    runner.close()
    return found


def whole(ids: list[int], first: int = 0, start: int = 0, end: int | None = None, block: int = 0) -> Row:
    sequence = Sequence(tuple(ids), SamplingParams(max_new_tokens=1, temperature=0), seed=1)
    sequence.blocks = list(range(block, block + 5))
    fed = ids[start:end]
    return Row(sequence, start, fed, samples=len(fed))


@needs_kernels
@pytest.mark.parametrize("level", LEVELS)
def test_only_activations_are_rounded(mixed_gguf: Path, level: str) -> None:
    """Logits are those of the same weights in float32, but for the rounding of activations to 8 bits."""
    wanted, found = logits(mixed_gguf, "float32", level), logits(mixed_gguf, "gguf", level)
    assert np.sqrt(np.mean((found - wanted) ** 2)) < 0.08 * wanted.std()


@needs_kernels
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", ["Q4_K", "Q5_K", "Q6_K"])
def test_rounded_sums_are_right_on_average(wide_gguf: Path, tmp_path: Path, kind: str, level: str) -> None:
    """Where the head's activations are exact in 8 bits, its products are above and below the true ones alike."""
    file = save_mixed(wide_gguf, tmp_path / "model.gguf", [kind])
    for tensor in gguf.GGUFReader(file, "r+").tensors:
        if tensor.name == "output_norm.weight":  # one channel of each 64 columns, which share a scale
            tensor.data[:] = [float(channel in (5, 101, 133, 229)) for channel in range(256)]
        elif re.search(r"attn_output|ffn_down", tensor.name):
            tensor.data[:] = 0  # no layer adds anything
    off = logits(file, "gguf", level) - logits(file, "float32", level)
    spread = np.sqrt(np.mean(off**2))
    assert spread > 0
    assert abs(off.mean()) < 0.15 * spread, off.mean() / spread


@needs_kernels
def test_levels_with_fused_multiplication_agree(mixed_gguf: Path) -> None:
    """To the last bit: sums of codes are integers, and scales are applied in one order."""
    if len(LEVELS) < 3:
        pytest.skip("this processor has one level of kernels besides the generic one")
    first, *others, generic = (logits(mixed_gguf, "gguf", level) for level in LEVELS)
    assert all(np.array_equal(first, other) for other in others)
    assert np.sqrt(np.mean((generic - first) ** 2)) < 0.05 * first.std()


@needs_kernels
@pytest.mark.parametrize("level", LEVELS)
def test_a_row_never_depends_on_others(mixed_gguf: Path, level: str) -> None:
    """Logits are the same to the last bit at once, in chunks of any size beside others, and on several threads."""
    alone = logits(mixed_gguf, "gguf", level)
    runner = NativeRunner(
        snapshot_of(mixed_gguf, "gguf"), kv_bytes=4 << 20, max_tokens=256, threads=3, kernels=LEVELS[level]
    )
    at, found = 0, []
    for count in (1, 2, 3, 7, 8, 16, 13):
        other = whole(random.Random(count).choices(range(600), k=count), block=10)
        mine = whole(IDS, start=at, end=at + count, block=20)
        found.append(runner.logits([other, mine])[count:])
        at += count
    runner.close()
    assert at == len(IDS)
    assert np.array_equal(np.concatenate(found), alone)


@needs_kernels
def test_every_matrix_has_its_own_type(mixed_gguf: Path) -> None:
    """The snapshot names all types, those of queries, keys and values apart, and is as small as the file."""
    snapshot = snapshot_of(mixed_gguf, "gguf")
    kinds = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}
    assert set(snapshot.weight_types) == {kinds.get(name, name.lower()) for name in MIXED_TYPES}
    parts = [snapshot.matrix_kind(f"0.qkv.{part}") for part in "qkv"]
    assert len(set(parts)) == 3
    assert snapshot.nbytes < 1.05 * mixed_gguf.stat().st_size


@needs_kernels
def test_padded_columns_are_served_in_int8(narrow: Path) -> None:
    """Blocks do not fit padded heads, so that one matrix is quantized again; rows are padded in the file's type."""
    snapshot = snapshot_of(narrow, "gguf")
    assert snapshot.matrix_kind("0.attention_out") == "int8"
    assert "int8" not in {snapshot.matrix_kind(name) for name in snapshot if name.startswith("0.") and ".g" in name}
    level = next(iter(LEVELS))
    wanted, found = logits(narrow, "float32", level), logits(narrow, "gguf", level)
    assert np.sqrt(np.mean((found - wanted) ** 2)) < 0.05 * wanted.std()


@needs_kernels
async def test_the_service_says_which_types(mixed_gguf: Path, load: Load) -> None:
    """``DTYPE=gguf`` shows in the model's metadata, with the types themselves."""
    info = load(mixed_gguf, dtype="gguf").info
    assert info.dtype == "gguf"
    assert "q4_k" in info.weight_types
    assert load(mixed_gguf, dtype="int8").info.weight_types == ("int8",)
    assert load(mixed_gguf, dtype="int4").info.weight_types == ("q4_k", "int8")


@needs_kernels
@pytest.mark.parametrize("level", LEVELS)
def test_codes_of_a_checkpoint(tmp_path: Path, level: str) -> None:
    """Logits of a GPTQ checkpoint with ``DTYPE=int4`` are those of its values, but for the rounding of activations."""
    source = save_tiny_llama(tmp_path / "plain", hidden_size=128, intermediate_size=256)
    save_quantized(source, tmp_path / "gptq", "gptq", 64)
    wanted, found = logits(tmp_path / "gptq", "float32", level), logits(tmp_path / "gptq", "int4", level)
    assert np.sqrt(np.mean((found - wanted) ** 2)) < 0.08 * wanted.std()


@pytest.fixture
def refusing() -> str:
    """The beginning of every refusal."""
    return r"DTYPE=gguf .*; set DTYPE=auto"


@needs_kernels
def test_other_models_are_refused(tiny_llama: Path, load: Load, refusing: str) -> None:
    """A folder has no GGUF types."""
    with pytest.raises(ModelUnavailable, match=refusing):
        load(tiny_llama, dtype="gguf")


@needs_kernels
def test_unknown_types_are_refused(wide_gguf: Path, tmp_path: Path, load: Load, refusing: str) -> None:
    """The message names tensor and type."""
    file = save_mixed(wide_gguf, tmp_path / "other.gguf", ["MXFP4"])
    with pytest.raises(ModelUnavailable, match=r"token_embd\.weight has the type MXFP4"):
        load(file, dtype="gguf")
    assert load(file, dtype="int8").info.weight_types == ("int8",)


@pytest.mark.parametrize("dtype", ["gguf", "int4"])
@pytest.mark.parametrize("engine", ["reference", "auto"])
def test_other_engines_are_refused(
    mixed_gguf: Path, load: Load, dtype: str, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the compiled kernels compute with these types."""
    without_kernels(monkeypatch)
    with pytest.raises(ModelUnavailable, match=rf"DTYPE={dtype} needs the compiled kernels.*; set DTYPE=auto"):
        load(mixed_gguf, dtype=dtype, engine=engine)
