"""The decoder against transformers: logits, and tensors from a snapshot."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import models

from runtime.engine.pytorch.decoder import weights_from_snapshot
from runtime.engine.pytorch.runner import TorchRunner
from runtime.loading.convert import convert
from runtime.loading.snapshot_writer import hold
from runtime.model.config import DecoderConfig
from runtime.model.snapshot import Facts
from runtime.model.tokenizer import Tokenizer
from tests.support.decoders import VARIANTS, decoder_of, embedded_shape, logits_of, model_of, placed, prompt


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_transformers(variant: str, deterministic: bool) -> None:
    """Behind every token of a prompt, within 1e-4, as logits and as log-probabilities."""
    model = model_of(variant)
    runner = TorchRunner(*decoder_of(model), kv_bytes=2**22, deterministic=deterministic)
    tokens = prompt(1, 200)
    with torch.inference_mode():
        expected = model(torch.tensor([tokens])).logits[0]
    got = logits_of(runner, placed(tokens, range(3, 16)))
    assert (got - expected).abs().max() < 1e-4
    assert (torch.log_softmax(got, 1) - torch.log_softmax(expected, 1)).abs().max() < 1e-4


@pytest.mark.parametrize("variant", ["gpt2", "llama-biases", "llama-3"])
@pytest.mark.parametrize(("kind", "steps"), [("float32", 0), ("bfloat16", 2**-8), ("int8", 1 / 127)])
def test_a_snapshots_tensors_are_the_models(
    variant: str, kind: Literal["float32", "bfloat16", "int8"], steps: float
) -> None:
    """Every tensor comes out of its panels as it went in, but for what its kind rounds away."""
    model = model_of(variant)
    config, weights = convert(model, DecoderConfig.from_transformers(model.config.to_dict()))
    tokenizer = Tokenizer(Backend(models.WordLevel({"a": 0}, unk_token="a")), None, {})
    snapshot = hold(Facts("x", None, "X", 1, kind, config, ()), tokenizer, weights)
    got = weights_from_snapshot(snapshot, torch.float32, torch.device("cpu"))
    assert got.keys() == {weight.name for weight in weights}
    for weight in weights:
        expected = torch.tensor(weight.read())
        allowed = steps * expected.abs().amax(-1, keepdim=True) if weight.matrix else torch.zeros(1)
        assert ((got[weight.name] - expected).abs() <= allowed).all()


def test_a_snapshot_in_sixteen_bits() -> None:
    """Tensors have the dtype that was asked for, all of them."""
    model = model_of("llama")
    config, weights = convert(model, DecoderConfig.from_transformers(model.config.to_dict()))
    tokenizer = Tokenizer(Backend(models.WordLevel({"a": 0}, unk_token="a")), None, {})
    snapshot = hold(Facts("x", None, "X", 1, "int8", config, ()), tokenizer, weights)
    got = weights_from_snapshot(snapshot, torch.bfloat16, torch.device("cpu"))
    assert {weight.dtype for weight in got.values()} == {torch.bfloat16}
    runner = TorchRunner(config, got, kv_bytes=2**22)
    assert logits_of(runner, placed(prompt(1, 20), range(2))).isfinite().all()


@pytest.mark.parametrize("deterministic", [True, False])
def test_sixteen_bits_give_float32_logits(deterministic: bool) -> None:
    """What the layers add up and the head's sums are not rounded to 16 bits: with the same weights the logits are
    within 0.01 of their spread of those of float32, and finer than bfloat16 can tell.
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
