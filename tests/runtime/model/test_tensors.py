"""The tensors that a decoder needs are those that a conversion gives."""

from __future__ import annotations

import pytest

from runtime.model.tensors import biases, matrices, vectors
from tests.support.decoders import VARIANTS, converted, model_of


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_conversion_gives_them(variant: str) -> None:
    """All of them in their shapes, and no others but biases."""
    model = model_of(variant)
    config, weights = converted(model)
    packed, plain = matrices(config), vectors(config)
    assert {weight.name: weight.shape for weight in weights if weight.matrix} == packed
    others = {weight.name: weight.shape for weight in weights if not weight.matrix}
    assert {name: others.pop(name) for name in plain} == plain
    assert others.items() <= biases(config).items()
