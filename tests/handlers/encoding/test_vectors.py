"""handlers.encoding.vectors: arithmetic on vectors and logits."""

from __future__ import annotations

import json
import math
from base64 import b64decode

import numpy as np
import pytest

from handlers.encoding.vectors import base64_text, numbers, scores, shortened, similarity_of
from runtime.encoder_types import Similarity

VECTOR = np.array([3, 4, 12], np.float32)


def test_fewer_dimensions() -> None:
    """The first ones, with the length 1 if asked for; zeros have no direction."""
    assert shortened(VECTOR, None, unit=False) is VECTOR
    assert shortened(VECTOR, 2, unit=False).tolist() == [3, 4]
    assert shortened(VECTOR, 2, unit=True).tolist() == pytest.approx([0.6, 0.8])
    assert shortened(np.zeros(2, np.float32), 2, unit=True).tolist() == [0, 0]
    assert shortened(VECTOR, 2, unit=True).dtype == np.float32


def test_numbers_are_the_same_float32() -> None:
    """Nine digits identify every float32: small and great ones, zeros, and those between."""
    drawn = np.random.default_rng(1)
    vectors = [
        drawn.standard_normal(1000).astype(np.float32) * np.float32(0.05),
        np.exp(drawn.uniform(-87, 88, 1000)).astype(np.float32),
        np.array([0, -0.0, 1e-45, 3.4e38, -1, 0.1, 1 / 3] + [0] * 993, np.float32),
    ]
    written = json.loads(json.dumps(numbers(vectors)))
    assert np.array_equal(np.array(written).astype(np.float32), np.stack(vectors))
    assert written[2][5:7] == [0.100000001, 0.333333343]


def test_base64() -> None:
    """The bytes of float32 in little-endian order, as OpenAI's clients decode them."""
    assert np.frombuffer(b64decode(base64_text(VECTOR)), "<f4").tolist() == [3, 4, 12]


@pytest.mark.parametrize(
    ("kind", "expected"), [("cosine", math.sqrt(0.5)), ("dot", 6), ("euclidean", -math.sqrt(10)), ("manhattan", -4)]
)
def test_similarity(kind: Similarity, expected: float) -> None:
    """More alike is greater: distances are negated."""
    one, other = np.array([2, 0], np.float32), np.array([3, 3], np.float32)
    assert similarity_of(kind)(one, other) == pytest.approx(expected)


def test_similarity_without_direction() -> None:
    """A vector of zeros is like nothing, and no cosine is above 1."""
    zeros = np.zeros(3, np.float32)
    assert similarity_of("cosine")(zeros, VECTOR) == 0
    assert similarity_of("cosine")(VECTOR, VECTOR) == 1


def test_activations() -> None:
    """Sigmoid for each class, softmax over all, or the logits; none overflows."""
    assert scores([0.0, 2.0], "sigmoid") == pytest.approx([0.5, 1 / (1 + math.exp(-2))])
    assert scores([-1000.0, 1000.0], "sigmoid") == [0, 1]
    assert scores([1000.0, 1000.0], "softmax") == [0.5, 0.5]
    assert scores([1.5], "none") == [1.5]
