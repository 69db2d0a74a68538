"""The encoders' states on compiled kernels and on torch, against transformers, and in other company."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from runtime.encoder_types import EncoderInput
from runtime.engine.native.encoder import NativeEncoder
from tests.support.encoder_models import CASES, encoder_of, snapshot_of_encoder, states_of
from tests.support.engines import needs_kernels

LENGTHS = (1, 40, 16, 5, 130)
"""Of which one is longer than the windows and the range of relative positions."""


def texts_for(model: Any) -> list[EncoderInput]:
    """Return texts without the padding token, the second one with token types if the model has any."""
    random = np.random.default_rng(3)
    types = getattr(model.config, "type_vocab_size", 1) > 1
    return [
        EncoderInput(tuple(random.integers(5, 101, n).tolist()), (0,) * 30 + (1,) * 10 if types and n == 40 else ())
        for n in LENGTHS
    ]


def native(snapshot: Any) -> Any:
    return NativeEncoder(snapshot, max_tokens=256, threads=2)


def on_torch(snapshot: Any) -> Any:
    import torch

    from runtime.engine.pytorch.encoder import TILE, TorchEncoder
    from runtime.engine.pytorch.model import TorchModel, weights_from_snapshot

    weights = weights_from_snapshot(snapshot, torch.float32, torch.device("cpu"))
    return TorchEncoder(TorchModel(snapshot.facts.decoder, weights, tile=TILE), max_tokens=256)


@pytest.mark.parametrize("open_encoder", [pytest.param(native, marks=needs_kernels), on_torch])
@pytest.mark.parametrize("case", CASES)
def test_states_are_those_of_transformers(case: str, open_encoder: Any) -> None:
    """Packed texts of several lengths have the states that transformers computes for each, and the same bits alone."""
    model = encoder_of(case)
    texts = texts_for(model)
    encoder = open_encoder(snapshot_of_encoder(model))
    try:
        found = encoder.states(texts, [range(len(text.ids)) for text in texts])
        for text, states in zip(texts, found, strict=True):
            expected = states_of(model, text)
            assert np.abs(states - expected).max() < 2e-4 * np.abs(expected).max()
        for text, states in zip(texts, found, strict=True):
            (alone,) = encoder.states([text], [range(len(text.ids))])
            assert alone.tobytes() == states.tobytes()
            (last,) = encoder.states([text], [range(len(text.ids) - 1, len(text.ids))])
            assert last.tobytes() == states[-1:].tobytes()
    finally:
        encoder.close()


@needs_kernels
@pytest.mark.parametrize("kind", ["int8", "bfloat16"])
def test_small_types_are_close_and_batch_invariant(kind: Any) -> None:
    """In other types the states are near, and a text has the same bits alone and among others."""
    model = encoder_of("bert")
    texts = texts_for(model)
    encoder = native(snapshot_of_encoder(model, kind))
    try:
        found = encoder.states(texts, [range(len(text.ids)) for text in texts])
        for text, states in zip(texts, found, strict=True):
            expected = states_of(model, text)
            assert (states * expected).sum() > 0.99 * np.linalg.norm(states) * np.linalg.norm(expected)
            assert encoder.states([text], [range(len(text.ids))])[0].tobytes() == states.tobytes()
    finally:
        encoder.close()


@needs_kernels
def test_the_kernels_refuse_what_is_out_of_range() -> None:
    """A token or a token type that the model does not have is refused before anything is read."""
    encoder = native(snapshot_of_encoder(encoder_of("bert")))
    try:
        for text in (
            EncoderInput((101,)),
            EncoderInput((5,), (2,)),
            EncoderInput((5,), (-1,)),
            EncoderInput((5,) * 300),
        ):
            with pytest.raises(RuntimeError, match="out of range"):
                encoder.states([text], [range(1)])
    finally:
        encoder.close()
