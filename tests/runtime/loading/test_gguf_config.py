"""What GGUF files say beside transformers' own reading: rotary scaling and other keys, used or refused by name."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from runtime.errors import ModelUnavailable
from runtime.loading.checkpoint import read
from runtime.loading.gguf_config import complete
from runtime.loading.serving_form import serving_form
from runtime.model.catalogue import parse_model_name
from runtime.model.gguf_header import GGUFHeader, TensorPlace
from tests.support.models import save_tiny_gguf, save_tiny_llama

ROPE = "llama.rope.scaling."
IDS = [3 + 7 * i * i % 587 for i in range(200)]
DIVISORS = np.linspace(1, 8, 8, dtype=np.float32)
YARN = {f"{ROPE}type": "yarn", f"{ROPE}factor": 4.0, f"{ROPE}original_context_length": 64}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

# Keys and tensors of a file, and the most likely token after each of the last eight of IDS, as llama.cpp has it (the
# sources in llama-cpp-python 0.3.36).
SCALINGS: dict[str, tuple[dict[str, Any], dict[str, Any], list[int]]] = {
    "plain": ({}, {}, [583, 219, 597, 399, 47, 597, 171, 455]),
    "another base": ({"llama.rope.freq_base": 500_000.0}, {}, [40, 481, 570, 249, 525, 263, 506, 544]),
    "linear": ({f"{ROPE}type": "linear", f"{ROPE}factor": 4.0}, {}, [89, 173, 135, 174, 131, 233, 538, 275]),
    "linear, old": ({"llama.rope.scale_linear": 2.0}, {}, [219, 410, 429, 467, 330, 302, 563, 456]),
    "none": ({f"{ROPE}type": "none", f"{ROPE}factor": 4.0}, {}, [583, 219, 597, 399, 47, 597, 171, 455]),
    "divisors": ({}, {"rope_freqs.weight": DIVISORS}, [476, 173, 313, 324, 413, 553, 125, 519]),
    "divisors and linear": (
        {f"{ROPE}type": "linear", f"{ROPE}factor": 2.0},
        {"rope_freqs.weight": DIVISORS},
        [50, 220, 404, 154, 209, 185, 56, 233],
    ),
    "attention factor": ({f"{ROPE}attn_factor": 1.25}, {}, [583, 173, 597, 446, 47, 425, 171, 455]),
    "yarn": (YARN | {f"{ROPE}attn_factor": 0.75}, {}, [92, 397, 136, 539, 357, 305, 325, 15]),
    "longrope": (
        {f"{ROPE}type": "longrope", f"{ROPE}original_context_length": 64, f"{ROPE}attn_factor": 1.25},
        {"rope_factors_long.weight": DIVISORS, "rope_factors_short.weight": DIVISORS / 2},
        [476, 173, 476, 298, 413, 496, 485, 571],
    ),
}


def _loaded(file: Path) -> Any:
    model, _ = read(parse_model_name(str(file)), file, "cpu", "float32", lambda stage, share: None)
    return model


def _logits(model: Any) -> torch.Tensor:  # [T, V]
    with torch.inference_mode():
        found: torch.Tensor = model(torch.tensor([IDS])).logits[0]
    return found


@pytest.mark.parametrize("name", SCALINGS)
def test_positions_turn_as_in_llama_cpp(name: str, tiny_llama: Path, tmp_path: Path) -> None:
    """The reference engine's model, and the fast engine's configuration where it takes the model."""
    keys, tensors, expected = SCALINGS[name]
    file = save_tiny_gguf(tmp_path / "tiny.gguf", tiny_llama, keys, tensors)
    model = _loaded(file)
    assert _logits(model)[-8:].argmax(-1).tolist() == expected
    if name == "longrope":
        return
    rotary = model.model.rotary_emb
    facts, _, _ = serving_form(parse_model_name(str(file)), file, "float32", lambda stage, share: None)
    (rotation,) = facts.decoder.rotations
    assert rotation.frequencies == pytest.approx(rotary.inv_freq.tolist(), rel=1e-5)
    assert rotation.factor == pytest.approx(rotary.attention_scaling)


@pytest.mark.parametrize(
    ("rope", "keys"),
    [
        ({"rope_type": "linear", "factor": 4.0}, {f"{ROPE}type": "linear", f"{ROPE}factor": 4.0}),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, YARN),
        (LLAMA3, {}),
    ],
)
def test_scaling_is_what_transformers_makes_of_the_original(rope: dict[str, Any], keys: Any, tmp_path: Path) -> None:
    """A folder and its GGUF file; converters write Llama 3.1's scaling as divisors of the frequencies."""
    folder = save_tiny_llama(tmp_path / "llama", rope_parameters={"rope_theta": 10_000.0} | rope)
    original = AutoModelForCausalLM.from_pretrained(folder)
    tensors = {}
    if rope is LLAMA3:
        plain = 10_000.0 ** (-np.arange(0, 16, 2) / 16)
        divisors = plain / original.model.rotary_emb.inv_freq.numpy()
        assert divisors.max() == pytest.approx(8)
        tensors = {"rope_freqs.weight": divisors.astype(np.float32)}
    file = save_tiny_gguf(tmp_path / "tiny.gguf", folder, keys, tensors)
    assert torch.allclose(_logits(_loaded(file)), _logits(original), atol=1e-3)


def _completed(keys: dict[str, Any], tensors: dict[str, TensorPlace] | None = None, **changes: Any) -> Any:
    config = AutoConfig.for_model("llama", max_position_embeddings=256, hidden_size=64, num_attention_heads=4)
    for name, value in changes.items():
        setattr(config, name, value)
    metadata = {"general.architecture": "llama"} | keys
    complete(config, GGUFHeader(metadata, tensors or {}), {"rope.freq_base"})
    return config


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rope.scaling.type", "martian"),
        ("rope.scaling.alpha", 1000.0),
        ("rope.dimension_count", 8),
        ("attention.value_length", 8),
        ("attention.sliding_window", 128),
        ("attention.sliding_window_pattern", 6),
        ("attention.causal", False),
        ("attention.clamp_kqv", 8.0),
        ("attention.scale", 0.1),
        ("logit_scale", 0.25),
        ("final_logit_softcapping", 30.0),
        ("expert_count", 8),
    ],
)
def test_what_changes_answers_and_is_not_supported_is_refused(key: str, value: Any) -> None:
    """By name and value."""
    with pytest.raises(ModelUnavailable, match=rf"{key}={value}, which is not supported"):
        _completed({f"llama.{key}": value})


@pytest.mark.parametrize("key", ["yarn_ext_factor", "yarn_attn_factor"])
def test_a_yarn_of_another_kind_is_refused(key: str) -> None:
    """Which hardly any model has."""
    with pytest.raises(ModelUnavailable, match=key):
        _completed(YARN | {f"{ROPE}{key}": 0.5})


def test_longrope_needs_its_tensors() -> None:
    """The factors are not in the metadata."""
    with pytest.raises(ModelUnavailable, match="rope_factors"):
        _completed({f"{ROPE}type": "longrope"})


def test_what_the_configuration_has_a_name_for_goes_there() -> None:
    """Also where transformers does not read the key."""
    keys = {"attention.key_length": 32, "rope.dimension_count": 32, "attention.layer_norm_rms_epsilon": 0.5}
    keys |= {"rope.freq_base": 5e5, "final_logit_softcapping": 30.0}
    config = _completed({f"llama.{key}": value for key, value in keys.items()}, final_logit_softcapping=None)
    assert (config.head_dim, config.rms_norm_eps, config.final_logit_softcapping) == (32, 0.5, 30.0)
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 5e5}


def test_layers_that_see_all_are_scaled_and_those_that_see_a_window_are_not() -> None:
    """As in Gemma 3, whose pattern may be a number or one value per layer."""
    config = AutoConfig.for_model("gemma3_text", num_hidden_layers=4, head_dim=256)
    keys = {"rope.freq_base": 1e6, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0}
    keys |= {"attention.sliding_window_pattern": np.array([True, False, True, True])}
    metadata = {"general.architecture": "gemma3"} | {f"gemma3.{key}": value for key, value in keys.items()}
    complete(config, GGUFHeader(metadata, {}), ())
    assert config.rope_parameters["full_attention"] == {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}
    assert config.rope_parameters["sliding_attention"] == {"rope_type": "default", "rope_theta": 10_000.0}
    assert [kind.partition("_")[0] for kind in config.layer_types] == ["sliding", "full", "sliding", "sliding"]


def test_models_without_rotary_positions_refuse_their_scaling() -> None:
    """GPT-2 has none."""
    config = SimpleNamespace(rope_parameters=None, num_attention_heads=0)
    header = GGUFHeader({"general.architecture": "gpt2", "gpt2.rope.scaling.factor": 2.0}, {})
    with pytest.raises(ModelUnavailable, match=r"rope\.scaling\.factor=2\.0"):
        complete(config, header, ())


def test_unknown_keys_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """Those of the model's namespace and of the tokenizer's, in one line."""
    with caplog.at_level(logging.WARNING, "warmstart.load"):
        _completed({"llama.new_trick": 1, "tokenizer.ggml.new_trick": 2, "general.name": "x", "llama.vocab_size": 9})
    (record,) = caplog.records
    assert record.getMessage().endswith("left out: llama.new_trick, tokenizer.ggml.new_trick")


def test_divisors_of_another_number_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    """They belong to another width of heads."""
    file = save_tiny_gguf(tmp_path / "tiny.gguf", tiny_llama, {}, {"rope_freqs.weight": DIVISORS[:4]})
    with pytest.raises(ModelUnavailable, match=r"4 values in rope_freqs\.weight, not 8"):
        _loaded(file)
