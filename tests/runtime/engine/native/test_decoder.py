"""The kernels run everything that a ``DecoderConfig`` describes."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.engine.native import library
from runtime.engine.native.runner import NativeRunner
from runtime.engine.sequence import Row, Sequence
from runtime.model.config import DecoderConfig
from runtime.model.packing import WeightKind
from runtime.types import SamplingParams
from tests.support.dense_decoder import DenseDecoder
from tests.support.engines import needs_kernels
from tests.support.random_decoder import DESCRIPTIONS, random_decoder
from tests.support.random_snapshot import held

pytestmark = needs_kernels
LENGTH = 150


def opened(name: str, kind: WeightKind, level: str | None = None) -> NativeRunner:
    kernels = next(one for one in library.usable() if level in (None, one.level))
    return NativeRunner(held(*random_decoder(name), kind), kv_bytes=4 << 20, max_tokens=512, threads=2, kernels=kernels)


def text(config: DecoderConfig, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, config.vocabulary, LENGTH).tolist()


def row(config: DecoderConfig, ids: list[int], first_block: int, start: int, end: int) -> Row:
    """A row that feeds the tokens from ``start`` to ``end`` and asks for the logits after each."""
    sequence = Sequence(tuple(ids), SamplingParams(max_new_tokens=1, temperature=0), seed=1)
    sequence.long_text = 0 < config.short_context < len(ids)
    sequence.blocks = list(range(first_block, first_block + LENGTH // 16 + 1))
    return Row(sequence, start, ids[start:end], samples=end - start)


@pytest.mark.parametrize("level", [kernels.level for kernels in library.usable()])
@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_logits_are_those_of_the_dense_reference(name: str, level: str) -> None:
    """In float32 the logits of every position agree with a plain implementation of the description."""
    config, tensors = random_decoder(name)
    ids = text(config, 1)
    runner = opened(name, "float32", level)
    found = runner.logits([row(config, ids, 0, 0, LENGTH)])
    runner.close()
    assert found == pytest.approx(DenseDecoder(config, tensors).logits(ids).numpy(), abs=2e-4)


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_results_do_not_depend_on_the_batch(name: str, kind: WeightKind) -> None:
    """Logits are bit-identical whether a prompt is fed at once, in chunks beside others, or token by token."""
    runner = opened(name, kind)
    config = DESCRIPTIONS[name][0]
    one, other = text(config, 1), text(config, 2)
    alone = runner.logits([row(config, one, 0, 0, LENGTH)])
    chunks = [
        runner.logits([row(config, other, 20, start, start + 30), row(config, one, 40, start, start + 30)])[30:]
        for start in range(0, LENGTH, 30)
    ]
    assert np.array_equal(np.concatenate(chunks), alone)
    last = runner.logits([row(config, other, 60, 0, 17), row(config, one, 40, LENGTH - 1, LENGTH)])[17:]
    assert np.array_equal(last, alone[-1:])
    runner.close()


@pytest.mark.parametrize("name", ["gemma3", "lfm2"])
def test_a_copied_block_holds_all_of_its_positions(name: str) -> None:
    """Keys, values and the inputs of convolutions move with a block: the rest of a text continues from the copy."""
    runner = opened(name, "float32")
    config = DESCRIPTIONS[name][0]
    ids = text(config, 3)
    expected = runner.logits([row(config, ids, 0, 0, 40)])[-8:]
    runner.logits([row(config, ids, 20, 0, 32)])
    for block in range(2):
        runner.copy_block(20 + block, 50 + block)
    assert np.array_equal(runner.logits([row(config, ids, 50, 32, 40)]), expected)
    runner.close()
