"""Products with the weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from runtime.engine.pytorch.linear import BatchInvariantLinear, widen_head


def made(
    dtype: torch.dtype, tile: int, wide: tuple[str, ...] = ()
) -> tuple[BatchInvariantLinear, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(100, 72, generator=generator).to(dtype), torch.randn(100, generator=generator).to(dtype)
    return BatchInvariantLinear({"a": weight, "b": weight[:50].clone()}, {"a": bias}, tile, wide=wide), weight, bias


@pytest.mark.parametrize("tile", [0, 8])
def test_it_multiplies(tile: int) -> None:
    """Each matrix is multiplied with, and the bias of those that have one is added."""
    product, weight, bias = made(torch.float32, tile)
    x = torch.randn(24, 72)
    assert torch.allclose(product(x, "a"), x @ weight.T + bias, atol=1e-4)
    assert torch.allclose(product(x, "b"), x @ weight[:50].T, atol=1e-4)


@pytest.mark.parametrize("tile", [0, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_wide_products_are_float32_sums(dtype: torch.dtype, tile: int) -> None:
    """Of 16-bit weights, too: as exact as the same numbers multiplied in float32. The others keep their type."""
    product, weight, bias = made(dtype, tile, wide=("a",))
    x = torch.randn(24, 72).to(dtype)
    got = product(x, "a")
    assert got.dtype == torch.float32
    assert torch.allclose(got, x.float() @ weight.float().T + bias.float(), atol=1e-4)
    assert product(x, "b").dtype == dtype


@pytest.mark.parametrize("wide", [(), ("a",)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_does_not_depend_on_the_others(dtype: torch.dtype, wide: tuple[str, ...]) -> None:
    """In any number of rows and at any place among them, a row gives the same bits."""
    product, *_ = made(dtype, 8, wide)
    x = torch.randn(344, 72).to(dtype)
    expected = torch.cat([product(x[i : i + 8], "a") for i in range(0, 344, 8)])
    for rows in (16, 24, 40, 64, 128, 136, 344):
        assert torch.equal(product(x[:rows], "a"), expected[:rows])
    order = torch.randperm(344)
    assert torch.equal(product(x[order], "a"), expected[order])


def test_numbers_of_rows_that_give_other_bits_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that adds in another order above 16 rows is caught at the start, and never asked for more of them."""
    plain = BatchInvariantLinear._product
    asked: list[int] = []

    def other(self: BatchInvariantLinear, x: torch.Tensor, name: str) -> torch.Tensor:
        asked.append(len(x))
        return plain(self, x, name) + (1e-3 if len(x) > 16 else 0)

    monkeypatch.setattr(BatchInvariantLinear, "_product", other)
    product, *_ = made(torch.float32, 8)
    assert 32 in asked
    asked.clear()
    product(torch.randn(56, 72), "a")
    assert asked == [16, 16, 16, 8]


SHAPE: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_of_transformers_with_a_wide_head(tied: bool) -> None:
    """Its logits are float32 products of what it computed before; a head of its own is not kept twice."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=tied)).eval().to(torch.bfloat16)
    ids = torch.arange(20)[None]
    weight = model.lm_head.weight.detach().clone()
    with torch.inference_mode():
        hidden = model.model(ids).last_hidden_state
        coarse = model(ids).logits
        added = widen_head(model)
        logits = model(ids).logits
    assert coarse.dtype == torch.bfloat16
    assert logits.dtype == torch.float32
    assert torch.allclose(logits, hidden.float() @ weight.float().T, atol=1e-4)
    assert added == weight.nbytes * (2 if tied else 1)
    assert model.lm_head.weight.nbytes == (weight.nbytes if tied else 0)
    assert torch.equal(model.get_input_embeddings().weight, weight) == tied


def test_what_a_model_does_behind_its_head_is_done_in_float32() -> None:
    """Gemma 2's soft cap."""
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(Gemma2Config(**SHAPE, head_dim=16, final_logit_softcapping=30.0)).to(torch.bfloat16)
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        hidden = model.eval().model(ids).last_hidden_state
        plain = hidden.float() @ model.lm_head.weight.float().T
        widen_head(model)
        assert torch.allclose(model(ids).logits, 30 * torch.tanh(plain / 30), atol=1e-4)


def test_a_float32_model_is_left_alone() -> None:
    """There is nothing to widen."""
    model = LlamaForCausalLM(LlamaConfig(**SHAPE))
    assert widen_head(model) == 0
    assert "forward" not in vars(model.lm_head)
