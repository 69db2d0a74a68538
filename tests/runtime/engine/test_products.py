"""Products with the weights."""

from __future__ import annotations

import pytest
import torch

from runtime.engine.products import Products


def made(dtype: torch.dtype, tile: int) -> tuple[Products, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(100, 72, generator=generator).to(dtype), torch.randn(100, generator=generator).to(dtype)
    return Products({"a": weight, "b": weight[:50].clone()}, {"a": bias}, tile), weight, bias


@pytest.mark.parametrize("tile", [0, 8])
def test_it_multiplies(tile: int) -> None:
    """Each matrix is multiplied with, and the bias of those that have one is added."""
    product, weight, bias = made(torch.float32, tile)
    x = torch.randn(24, 72)
    assert torch.allclose(product(x, "a"), x @ weight.T + bias, atol=1e-4)
    assert torch.allclose(product(x, "b"), x @ weight[:50].T, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_does_not_depend_on_the_others(dtype: torch.dtype) -> None:
    """In any number of rows and at any place among them, a row gives the same bits."""
    product, *_ = made(dtype, 8)
    x = torch.randn(344, 72).to(dtype)
    expected = torch.cat([product(x[i : i + 8], "a") for i in range(0, 344, 8)])
    for rows in (16, 24, 40, 64, 128, 136, 344):
        assert torch.equal(product(x[:rows], "a"), expected[:rows])
    order = torch.randperm(344)
    assert torch.equal(product(x[order], "a"), expected[order])


def test_numbers_of_rows_that_give_other_bits_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that adds in another order above 16 rows is caught at the start, and never asked for more of them."""
    plain = Products._product
    asked: list[int] = []

    def other(self: Products, x: torch.Tensor, name: str) -> torch.Tensor:
        asked.append(len(x))
        return plain(self, x, name) + (1e-3 if len(x) > 16 else 0)

    monkeypatch.setattr(Products, "_product", other)
    product, *_ = made(torch.float32, 8)
    assert 32 in asked
    asked.clear()
    product(torch.randn(56, 72), "a")
    assert asked == [16, 16, 16, 8]
