"""GGUF files of mixtures of experts on the compiled kernels, in the file's types and in those of other snapshots."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.engine.native.runner import NativeRunner
from runtime.engine.sequence import Row, Sequence
from runtime.model.gguf_header import read_header
from runtime.model.packing import SnapshotKind
from runtime.types import SamplingParams
from tests.support.engines import needs_kernels, snapshot_of
from tests.support.gguf_cases import RMS, Case, saved
from tests.support.gguf_models import MIXED_TYPES, save_mixed

IDS = random.Random(4).choices(range(600), k=50)


@pytest.fixture(scope="module")
def mixture(wide_gguf: Path) -> Path:
    """A mixture of experts with a shared one, in which every stack and every matrix has another type."""
    metadata = read_header(wide_gguf).metadata
    tokenizer = {
        key: value.tolist() if isinstance(value, np.ndarray) else value
        for key, value in metadata.items()
        if key.startswith("tokenizer.")
    }
    case = Case(
        "qwen2moe",
        "qwen2_moe",
        {
            "vocab_size": len(tokenizer["tokenizer.ggml.tokens"]),
            "hidden_size": 256,
            "num_attention_heads": 4,
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 256,
            "shared_expert_intermediate_size": 256,
            "tie_word_embeddings": True,
        },
        {
            RMS: 1e-6,
            "expert_count": 6,
            "expert_used_count": 2,
            "expert_feed_forward_length": 256,
            "expert_shared_feed_forward_length": 256,
        },
    )
    file = wide_gguf.with_name("mixture.gguf")
    saved(case, file, tokenizer)
    return save_mixed(file, file.with_name("mixed-mixture.gguf"))


def whole(start: int = 0, end: int | None = None, ids: list[int] = IDS, block: int = 0) -> Row:
    """A part of a text, of which logits are wanted after each token."""
    sequence = Sequence(tuple(ids), SamplingParams(max_new_tokens=1, temperature=0), seed=1)
    sequence.blocks = list(range(block, block + 5))
    fed = ids[start:end]
    return Row(sequence, start, fed, samples=len(fed))


def runner_of(file: Path, kind: SnapshotKind, threads: int = 1) -> NativeRunner:
    """The kernels with a file's weights."""
    return NativeRunner(snapshot_of(file, kind), kv_bytes=4 << 20, max_tokens=256, threads=threads)


def logits(file: Path, kind: SnapshotKind) -> NDArray[np.float32]:
    """The logits of one text, computed at once."""
    runner = runner_of(file, kind)
    found = runner.logits([whole()])
    runner.close()
    return found


@needs_kernels
@pytest.mark.parametrize(("kind", "most"), [("gguf", 0.08), ("int8", 0.08), ("int4", 0.25)])
def test_logits_are_those_of_the_files_values(mixture: Path, kind: SnapshotKind, most: float) -> None:
    """But for the rounding of activations, and of weights where they are converted."""
    wanted, found = logits(mixture, "float32"), logits(mixture, kind)
    assert 0 < np.sqrt(np.mean((found - wanted) ** 2)) < most * wanted.std()


@needs_kernels
def test_stacks_have_the_files_types(mixture: Path) -> None:
    """The parts of experts in their own; with ``DTYPE=int4`` gate and up have 4 bits, and down has 8, as in any MLP."""
    snapshot = snapshot_of(mixture, "gguf")
    kinds = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}
    assert set(snapshot.weight_types) == {kinds.get(name, name.lower()) for name in MIXED_TYPES}
    parts = [snapshot.matrix_kind(f"1.experts_{part}") for part in ("gate_up.gate", "gate_up.up", "down")]
    assert len(set(parts)) == 3
    assert snapshot.nbytes < 1.05 * mixture.stat().st_size
    four = snapshot_of(mixture, "int4")
    parts = [four.matrix_kind(f"1.experts_{part}") for part in ("gate_up.gate", "gate_up.up", "down")]
    assert parts == ["q4_k", "q4_k", "int8"]


@needs_kernels
@pytest.mark.parametrize("kind", ["gguf", "int4"])
def test_a_row_never_depends_on_others(mixture: Path, kind: SnapshotKind) -> None:
    """Logits are the same to the last bit at once, in chunks of any size beside others, and on several threads."""
    alone = logits(mixture, kind)
    runner = runner_of(mixture, kind, threads=3)
    at, found = 0, []
    for count in (1, 2, 3, 7, 8, 16, 13):
        other = whole(ids=random.Random(count).choices(range(600), k=count), block=10)
        found.append(runner.logits([other, whole(at, at + count, block=20)])[count:])
        at += count
    runner.close()
    assert at == len(IDS)
    assert np.array_equal(np.concatenate(found), alone)
