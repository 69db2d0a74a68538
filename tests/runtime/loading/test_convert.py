"""Which tensors of a checkpoint are taken, and which are reported; the values are checked in ``test_families``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from runtime.errors import ModelUnavailable
from runtime.loading.convert import convert, count_parameters, with_actual_head
from runtime.loading.tensor_source import StateDictSource
from runtime.model.families import read_config
from tests.support.decoders import model_of
from tests.support.numpy_decoder import logits

Array = NDArray[np.float32]
State = Mapping[str, Any]

UP, EMBED, HEAD = "model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight", "lm_head.weight"


def llama(variant: str = "llama-biases") -> tuple[Any, dict[str, Any]]:
    """A model's configuration and its tensors."""
    model = model_of(variant)
    return model.config.to_dict(), dict(model.state_dict())


def converted(config: Mapping[str, Any], state: State, *, equalize: bool = False) -> dict[str, Array]:
    decoder, layout = read_config(config)
    source = StateDictSource(state)
    decoder = with_actual_head(decoder, layout, source)
    weights = convert(decoder, layout, source, equalize=equalize)
    return {weight.name: weight.read() for weight in weights}


def refusal(config: Mapping[str, Any], state: State) -> str:
    with pytest.raises(ModelUnavailable) as caught:
        converted(config, state)
    return str(caught.value)


def without(*names: str) -> Callable[[State], State]:
    return lambda state: {name: tensor for name, tensor in state.items() if name not in names}


def test_a_head_that_is_the_embedding_is_not_stored_twice() -> None:
    """Whether the checkpoint has it once or twice; a head of other values counts as one of its own."""
    config, state = llama()
    assert config["tie_word_embeddings"]
    once = converted(config, without(HEAD)(state))
    assert "head" not in once
    twice = converted(config, {**state, HEAD: state[EMBED].clone()})
    assert once.keys() == twice.keys() == converted(config, state).keys()
    as_head = converted(config, {**without(EMBED)(state), HEAD: state[EMBED]})
    assert np.array_equal(as_head["embed"], once["embed"])
    other = converted(config, {**state, HEAD: state[EMBED] + 1})
    assert np.array_equal(other["head"], once["embed"] + 1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without(UP), f"({UP} missing)"),
        (without(UP.replace("weight", "bias")), f"({UP[:-6]}bias missing)"),
        (
            lambda state: {**without(UP)(state), "other": state[UP]},
            f"({UP} missing and other left over)",
        ),
        (lambda state: {**state, UP.replace("1", "2"): state[UP].clone()}, f"has no place for {UP.replace('1', '2')}"),
        (lambda state: {**state, UP: state[UP][1:]}, f"{UP} is [99, 48] where its configuration needs [100, 48])"),
        (
            lambda state: {name: tensor[..., 1:] if "norm" in name else tensor for name, tensor in state.items()},
            "where its configuration needs [48], and 4 more)",
        ),
        (without(EMBED, HEAD), f"{EMBED} missing"),
        (lambda state: {**state, f"module.{UP}": state[UP].clone()}, f"has no place for module.{UP}"),
        (lambda state: {}, "and 30 more missing"),
    ],
)
def test_tensors_that_do_not_fit_are_named(change: Callable[[State], State], said: str) -> None:
    """Missing, superfluous, of another shape, or there twice."""
    config, state = llama()
    assert said in refusal(config, change(state))


def test_a_head_that_is_not_tied_must_be_there() -> None:
    """A checkpoint without it is not complete."""
    config, state = llama("llama-3")
    assert "(lm_head.weight missing)" in refusal(config, without(HEAD)(state))


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"module.{name}",
        lambda name: f"_orig_mod.module.{name}",
        lambda name: name.removeprefix("model."),
        lambda name: "module." + name.removeprefix("model."),
    ],
)
def test_prefixes_of_wrappers_and_of_the_base_model_do_not_matter(rename: Callable[[str], str]) -> None:
    """As training scripts leave them, and as the base model alone is saved."""
    config, state = llama("llama-3")
    expected = converted(config, state)
    actual = converted(config, {rename(name): tensor for name, tensor in state.items()})
    assert all(np.array_equal(actual[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("variant", "buffer"),
    [
        ("llama", "model.layers.0.self_attn.rotary_emb.inv_freq"),
        ("gpt2", "transformer.h.0.attn.bias"),
        ("gpt2", "h.1.attn.masked_bias"),
    ],
)
def test_buffers_of_older_versions_are_ignored(variant: str, buffer: str) -> None:
    """They have no weights, and do not count as parameters."""
    config, state = llama(variant)
    assert converted(config, {**state, buffer: torch.ones(3)}).keys() == converted(config, state).keys()
    decoder, layout = read_config(config)
    source = StateDictSource({**state, buffer: torch.ones(3)})
    model = model_of(variant)
    assert count_parameters(decoder, layout, source) == sum(p.numel() for p in model.parameters())


def test_sixteen_bit_weights_are_widened() -> None:
    """What is read is float32 with the stored values."""
    config, state = llama()
    narrow = {name: tensor.to(torch.bfloat16) for name, tensor in state.items()}
    rounded = {name: tensor.float() for name, tensor in narrow.items()}
    expected = converted(config, rounded)
    for name, values in converted(config, narrow).items():
        assert values.dtype == np.float32
        assert np.array_equal(values, expected[name])


def test_equalizing_changes_nothing_but_the_scales() -> None:
    """Exactly, because the factors are powers of two, and rows and columns come nearer to each other."""
    config, state = llama()
    uneven = torch.logspace(-2, 2, 100)
    state |= {
        name: tensor * (uneven[:, None] if tensor.ndim == 2 else uneven)
        for name, tensor in state.items()
        if ".up_proj" in name
    }
    state |= {name: tensor / uneven for name, tensor in state.items() if name.endswith("down_proj.weight")}
    decoder, _ = read_config(config)
    plain, equalized = converted(config, state), converted(config, state, equalize=True)

    def spread(tensors: Mapping[str, Array]) -> float:
        up = tensors["0.gate_up"].reshape(-1, 2, 16, 48)[:, 1].reshape(-1, 48)[:100]
        ratios = np.log2(np.linalg.norm(up, axis=1) / np.linalg.norm(tensors["0.down"], axis=0))
        return float(ratios.max() - ratios.min())

    assert spread(plain) > 20
    assert spread(equalized) < 2.01
    factors = plain["0.down"][0] / equalized["0.down"][0]
    assert np.array_equal(np.exp2(np.round(np.log2(factors))), factors)
    ids = list(range(40))
    assert np.array_equal(logits(decoder, equalized, ids), logits(decoder, plain, ids))


def test_an_mlp_of_zeros_is_not_scaled() -> None:
    """No division by zero."""
    config, state = llama("llama")
    state |= {name: torch.zeros_like(tensor) for name, tensor in state.items() if ".up_proj" in name}
    assert all(np.isfinite(values).all() for values in converted(config, state, equalize=True).values())


def test_a_layout_without_a_list_of_biases_takes_what_is_there() -> None:
    """In all layers, and for all of queries, keys and values; those that are missing are zeros."""
    config, state = llama("llama-3")
    decoder, layout = read_config(config)
    layout = replace(layout, biases=None)
    bias = "model.layers.{}.self_attn.q_proj.bias"
    state |= {bias.format(i): torch.ones(96) for i in range(2)}
    weights = {weight.name: weight.read() for weight in convert(decoder, layout, StateDictSource(state))}
    assert {name for name in weights if name.endswith("bias")} == {"0.qkv.bias", "1.qkv.bias"}
    assert weights["0.qkv.bias"].sum() == 96
    del state[bias.format(1)]
    weights = {weight.name: weight.read() for weight in convert(decoder, layout, StateDictSource(state))}
    assert (weights["0.qkv.bias"].sum(), weights["1.qkv.bias"].sum()) == (96, 0)
