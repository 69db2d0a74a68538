"""Each family and option, read from a checkpoint's files, computes the same logits as transformers' own model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from runtime.loading.convert import convert, with_actual_head
from runtime.loading.safetensors_source import SafetensorsSource
from runtime.model.config import DecoderConfig
from runtime.model.families import read_config
from runtime.model.tensors import biases, matrices, vectors
from tests.support.numpy_decoder import Array, logits

IDS = np.random.default_rng(7).integers(3, 99, 60).tolist()

SMALL = {
    "vocab_size": 101,
    "hidden_size": 48,
    "intermediate_size": 72,  # not a multiple of 16
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
}
GPT2 = {"vocab_size": 101, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 96}
NO_TOKENS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {**SMALL, "head_dim": 16}),
    "llama, tied and with biases": (
        "Llama",
        {**SMALL, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    ),
    "llama 3.1": (
        "Llama",
        {
            **SMALL,
            "head_dim": 16,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
    ),
    "mistral": ("Mistral", {**SMALL, "sliding_window": None}),
    "mistral with a window": ("Mistral", {**SMALL, "sliding_window": 12, "head_dim": 20}),
    "gpt2": ("GPT2", GPT2),
    "gpt2, untied": ("GPT2", {**GPT2, "n_inner": 80, "tie_word_embeddings": False}),
}


def random_model(family: str, options: dict[str, Any]) -> Any:
    """A model of transformers whose parameters are all random, also those that begin as zeros or ones."""
    config = getattr(transformers, f"{family}Config")(**{**NO_TOKENS, **options})
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
            else:
                parameter.copy_(torch.randn_like(parameter) * 0.2)
    return model


def read(folder: Path) -> tuple[DecoderConfig, dict[str, Array]]:
    """A checkpoint as the fast engine gets it, checked against the table of tensors."""
    config, layout = read_config(json.loads((folder / "config.json").read_bytes()))
    source = SafetensorsSource(sorted(folder.glob("*.safetensors")))
    config = with_actual_head(config, layout, source)
    tensors = {}
    packed, plain, optional = matrices(config), vectors(config), biases(config)
    for weight in convert(config, layout, source):
        tensors[weight.name] = weight.read()
        assert tensors[weight.name].shape == weight.shape == (packed | plain | optional)[weight.name]
        assert tensors[weight.name].dtype == np.float32
        assert weight.matrix == (weight.name in packed)
    assert (packed | plain).keys() <= tensors.keys()
    return config, tensors


@pytest.mark.parametrize("case", CASES)
def test_the_description_computes_the_model(case: str, tmp_path: Path) -> None:
    """All of a family's options, from the files to the logits."""
    family, options = CASES[case]
    model = random_model(family, options)
    model.save_pretrained(tmp_path)
    config, tensors = read(tmp_path)
    with torch.inference_mode():
        expected = model(torch.tensor(IDS)[None]).logits[0].numpy()
    assert expected.std() > 0.1
    actual = logits(config, tensors, IDS)
    assert np.abs(actual - expected).max() < 1e-3
    assert np.array_equal(actual.argmax(-1), expected.argmax(-1))
