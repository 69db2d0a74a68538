"""The decoder against a dense reference, for every field of a description, and tensors from a snapshot."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import models

from runtime.engine.pytorch.model import weights_from_snapshot
from runtime.engine.pytorch.runner import TorchRunner
from runtime.engine.sequence import Row
from runtime.loading.snapshot_writer import Weight, hold
from runtime.model.packing import WeightKind
from runtime.model.snapshot import Facts, Snapshot
from runtime.model.tensors import matrices
from runtime.model.tokenizer import Tokenizer
from tests.support.decoders import embedded_shape, logits_of, placed, prompt
from tests.support.dense_decoder import DenseDecoder
from tests.support.random_decoder import DESCRIPTIONS, random_decoder

LENGTH = 420  # a window of up to 130 positions is read without the blocks before it


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_logits_are_those_of_the_dense_decoder(name: str) -> None:
    """After every token of a prompt, at once and in chunks, with and without batch invariance, within 3e-4."""
    config, weights = random_decoder(name)
    tokens = prompt(1, LENGTH)
    expected = DenseDecoder(config, weights).logits(tokens)
    for deterministic in (True, False):
        runner = TorchRunner(config, dict(weights), kv_bytes=2**23, deterministic=deterministic)
        for chunk in (LENGTH, 97):
            sequence = placed(tokens, range(3, 30))
            sequence.long_text = 0 < config.short_context < LENGTH
            got = logits_of(runner, sequence, chunk=chunk)
            assert (got - expected).abs().max() < 3e-4
            assert (torch.log_softmax(got, 1) - torch.log_softmax(expected, 1)).abs().max() < 3e-4


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_rows_of_a_mixed_batch_are_those_of_the_dense_decoder(name: str, deterministic: bool) -> None:
    """A prompt, a chunk of another, a decoding row and a row with drafts, all in one step."""
    config, weights = random_decoder(name)
    dense = DenseDecoder(config, weights)
    runner = TorchRunner(config, weights, kv_bytes=2**24, deterministic=deterministic)
    rows, expected = [], []
    for i, (length, fed) in enumerate([(60, 60), (350, 70), (301, 1), (1, 1), (150, 1), (90, 4)]):
        sequence = placed(prompt(i, length), range(25 * i, 25 * i + 25))
        sequence.long_text = 0 < config.short_context < length
        start = length - fed
        if start:
            runner.forward([Row(sequence, 0, sequence.tokens[:start], samples=0)])
        rows.append(Row(sequence, start, sequence.tokens[start:], samples=fed))
        expected.append(dense.logits(sequence.tokens)[start:])
    assert (runner.forward(rows)[0] - torch.cat(expected)).abs().max() < 3e-4


def snapshot_of(name: str, kind: WeightKind) -> tuple[Snapshot, dict[str, torch.Tensor]]:
    """Return a snapshot of a random decoder in memory, and the decoder's tensors."""
    config, tensors = random_decoder(name)
    weights = [
        Weight(key, tuple(tensor.shape), key in matrices(config), tensor.numpy) for key, tensor in tensors.items()
    ]
    tokenizer = Tokenizer(Backend(models.WordLevel({"a": 0}, unk_token="a")), None, {})
    return hold(Facts("x", None, "X", 1, kind, config, ()), tokenizer, weights), tensors


@pytest.mark.parametrize("name", ["gpt2", "odd", "lfm2-biases", "lfm2_moe", "odd-experts"])
@pytest.mark.parametrize(("kind", "steps"), [("float32", 0), ("bfloat16", 2**-8), ("int8", 1 / 127)])
def test_a_snapshots_tensors_are_the_models(
    name: str, kind: Literal["float32", "bfloat16", "int8"], steps: float
) -> None:
    """Every tensor is unpacked to what was packed, except for the rounding of its kind."""
    snapshot, tensors = snapshot_of(name, kind)
    got = weights_from_snapshot(snapshot, torch.float32, torch.device("cpu"))
    assert got.keys() == tensors.keys()
    for key, expected in tensors.items():
        allowed = steps * expected.abs().amax(-1, keepdim=True) if snapshot.is_matrix(key) else torch.zeros(1)
        assert ((got[key] - expected).abs() <= allowed).all()


@pytest.mark.parametrize("name", ["llama", "gemma2", "bloom", "lfm2", "qwen2_moe", "lfm2_moe"])
def test_a_snapshot_in_sixteen_bits(name: str) -> None:
    """All tensors but routers and gates have the requested dtype, and the logits are within 0.1 of the spread of those
    of float32.
    """
    snapshot, _ = snapshot_of(name, "bfloat16")
    got = weights_from_snapshot(snapshot, torch.bfloat16, torch.device("cpu"))
    for key, weight in got.items():
        assert weight.dtype == (torch.float32 if ".router" in key or "shared_gate" in key else torch.bfloat16)
    config, tokens = snapshot.facts.decoder, prompt(1, 40)
    expected = DenseDecoder(config, got).logits(tokens)
    for deterministic in (True, False):
        runner = TorchRunner(config, dict(got), kv_bytes=2**22, deterministic=deterministic)
        assert (logits_of(runner, placed(tokens, range(3))) - expected).std() < 0.1 * expected.std()


@pytest.mark.parametrize("deterministic", [True, False])
def test_sixteen_bits_give_float32_logits(deterministic: bool) -> None:
    """The residual stream and the head's sums are not rounded to 16 bits: with the same weights the logits are within
    0.01 of their spread of those of float32, and finer than bfloat16.
    """
    config, rounded = embedded_shape(torch.bfloat16, layers=8)
    exact = {name: weight.float() for name, weight in rounded.items()}
    tokens = prompt(1, 40, config.vocabulary)
    got, expected = (
        logits_of(TorchRunner(config, weights, kv_bytes=2**24, deterministic=deterministic), placed(tokens, range(3)))
        for weights in (rounded, exact)
    )
    assert got.dtype == torch.float32
    assert not torch.equal(got, got.bfloat16().float())
    assert (got - expected).std() < 0.01 * expected.std()
