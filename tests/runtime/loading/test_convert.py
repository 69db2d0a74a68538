"""The tensors under their new names compute the model: a decoder of a few lines gives transformers' logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from runtime.loading.convert import convert, equalize
from runtime.model.config import DecoderConfig, UnsupportedDecoder
from tests.support.models import save_tiny_llama

Array = NDArray[np.float32]
IDS = np.array([5, 1, 7, 7, 2, 90])


def llama(**changes: Any) -> Any:
    torch.manual_seed(1)
    config = LlamaConfig(
        **{
            "vocab_size": 101,
            "hidden_size": 48,
            "intermediate_size": 72,  # not a multiple of 16
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,  # wider than the residual stream
            "initializer_range": 0.3,
            **changes,
        }
    )
    return with_biases(LlamaForCausalLM(config))


def gpt2(**changes: Any) -> Any:
    torch.manual_seed(2)
    config = GPT2Config(
        **{"vocab_size": 101, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 32, "initializer_range": 0.3},
        **changes,
    )
    return with_biases(GPT2LMHeadModel(config))


def with_biases(model: Any) -> Any:
    """They begin as zeros, which would hide one that is forgotten."""
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return model.eval()


def converted(model: Any) -> tuple[DecoderConfig, dict[str, Array]]:
    config, weights = convert(model, DecoderConfig.from_transformers(model.config.to_dict()))
    tensors = {}
    for weight in weights:
        tensors[weight.name] = weight.read()
        assert tensors[weight.name].shape == weight.shape
        assert tensors[weight.name].dtype == np.float32
        assert weight.matrix == (weight.name in ("embed", "head") or weight.name.split(".")[-1] in MATRICES)
    return config, tensors


MATRICES = {"qkv", "attention_out", "gate_up", "up", "down"}


def logits(config: DecoderConfig, tensors: dict[str, Array], ids: NDArray[np.int64]) -> Array:
    """The model, written from the table of names in ``runtime.loading.convert``."""

    def product(name: str, x: Array) -> Array:
        return x @ tensors[name].T + tensors.get(f"{name}.bias", np.float32(0))

    def norm(name: str, x: Array) -> Array:
        if config.family == "gpt2":
            x = x - x.mean(-1, keepdims=True)
        scaled = x / np.sqrt((x * x).mean(-1, keepdims=True) + config.norm_epsilon)
        return scaled * tensors[f"{name}.weight"] + tensors.get(f"{name}.bias", np.float32(0))

    def rotated(x: Array) -> Array:  # [T, heads, D]
        if config.family == "gpt2":
            return x
        angles = np.arange(len(ids))[:, None, None] * np.array(config.inverse_frequencies)
        a, b = np.split(x, 2, axis=-1)
        turned = [a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)]
        return np.concatenate(turned, -1) * config.rope_attention_factor

    def activation(x: Array) -> Array:
        found: Array = {
            "silu": torch.nn.functional.silu,
            "gelu_tanh": lambda t: torch.nn.functional.gelu(t, approximate="tanh"),
        }[config.activation](torch.tensor(x)).numpy()
        return found

    x = tensors["embed"][ids]
    if config.family == "gpt2":
        x = x + tensors["positions"][: len(ids)]
    hidden_future = np.triu(np.full((len(ids), len(ids)), -np.inf), 1)
    for i in range(config.layers):
        qkv = product(f"{i}.qkv", norm(f"{i}.attention_norm", x)).reshape(len(ids), -1, config.head_dim)
        q, k, v = np.split(qkv, [config.heads, config.heads + config.kv_heads], axis=1)
        q, k = rotated(q), rotated(k)
        group = config.heads // config.kv_heads
        out = np.zeros_like(q)
        for head in range(config.heads):
            scores = q[:, head] @ k[:, head // group].T / np.sqrt(config.head_dim) + hidden_future
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            out[:, head] = weights / weights.sum(-1, keepdims=True) @ v[:, head // group]
        x = x + product(f"{i}.attention_out", out.reshape(len(ids), -1))
        y = norm(f"{i}.mlp_norm", x)
        if config.family == "llama":
            both = product(f"{i}.gate_up", y).reshape(len(ids), -1, 2, 16)
            inner = (activation(both[:, :, 0]) * both[:, :, 1]).reshape(len(ids), -1)[:, : config.intermediate]
        else:
            inner = activation(product(f"{i}.up", y))
        x = x + product(f"{i}.down", inner)
    return product("embed" if config.tied else "head", norm("final_norm", x))


@pytest.mark.parametrize(
    ("make", "changes"),
    [
        (llama, {}),
        (llama, {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
        (gpt2, {}),
        (gpt2, {"tie_word_embeddings": False, "n_inner": 80}),
    ],
)
def test_the_tensors_compute_the_model(make: Any, changes: dict[str, Any]) -> None:
    """Names, shapes, order of rows, transposition, interleaving and rotary convention."""
    model = make(**changes)
    config, tensors = converted(model)
    with torch.inference_mode():
        expected = model(torch.tensor(IDS)[None]).logits[0].numpy()
    assert np.allclose(logits(config, tensors, IDS), expected, atol=2e-4)


def test_a_head_that_is_the_embedding_is_not_stored_twice() -> None:
    """Whatever the configuration says, the loaded model decides."""
    tied, tensors = converted(llama(tie_word_embeddings=True))
    assert (tied.tied, "head" in tensors) == (True, False)
    model = llama(tie_word_embeddings=True)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    config, tensors = converted(model)
    assert (config.tied, "head" in tensors) == (False, True)


def test_rotary_frequencies_are_the_models_own() -> None:
    """To the last bit, which a computation of our own need not hit."""
    model = llama(rope_parameters={"rope_type": "default", "rope_theta": 100_000.0})
    config, _ = converted(model)
    assert config.inverse_frequencies == tuple(model.model.rotary_emb.inv_freq.tolist())


def test_sixteen_bit_weights_are_widened() -> None:
    """What is read is float32 with the values that the file holds."""
    model = llama()
    _, wide = converted(model)
    _, read = converted(model.to(torch.bfloat16))
    rounded = torch.tensor(wide["0.down"]).to(torch.bfloat16).float().numpy()
    assert np.array_equal(read["0.down"], rounded)


def test_tensors_that_do_not_fit_are_refused() -> None:
    """A tensor too many or too few is not passed over in silence."""
    model = llama()
    model.model.layers[1].extra = torch.nn.Linear(2, 2)
    with pytest.raises(UnsupportedDecoder, match="extra"):
        converted(model)
    model = llama()
    del model.model.layers[1].mlp.up_proj
    with pytest.raises(UnsupportedDecoder, match="up_proj"):
        converted(model)


def test_equalizing_changes_nothing_but_the_scales(tmp_path: Path) -> None:
    """The logits stay to the last few bits, and rows and columns come nearer to each other."""
    folder = save_tiny_llama(tmp_path, mlp_bias=True)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.arange(50)[None]
    with torch.inference_mode():
        before = model(ids).logits
        up, down = model.model.layers[0].mlp.up_proj, model.model.layers[0].mlp.down_proj
    with torch.no_grad():
        up.weight *= torch.logspace(-2, 2, len(up.weight))[:, None]  # as uneven as can be
        up.bias *= torch.logspace(-2, 2, len(up.weight))
        down.weight /= torch.logspace(-2, 2, len(up.weight))
    equalize(model)
    ratios = (up.weight.norm(dim=1) / down.weight.norm(dim=0)).log2()
    assert ratios.max() - ratios.min() <= 2.01
    with torch.inference_mode():
        assert torch.allclose(model(ids).logits, before, atol=1e-4 * float(before.abs().max()))
