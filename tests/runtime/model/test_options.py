"""The options of a ``config.json`` as the fast decoder reads them, compared with transformers."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from transformers import GPT2Config, LlamaConfig, MistralConfig
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from runtime.model.config import DecoderConfig, UnsupportedDecoder
from runtime.model.families import read_config

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 100,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "vocab_size": 600,
}
GPT2: dict[str, Any] = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "n_embd": 64,
    "n_head": 4,
    "n_layer": 2,
    "n_positions": 128,
    "vocab_size": 600,
}
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0 + i / 8 for i in range(8)]}
LONGROPE |= {"long_factor": LONGROPE["short_factor"]}
ROPE: list[dict[str, Any]] = [
    {"rope_type": "default", "rope_theta": 500_000.0},
    {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0},
    {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0},
    {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 64},
    {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 8.0,
        "original_max_position_embeddings": 32,
        "beta_fast": 16,
        "beta_slow": 2,
        "truncate": False,
        "mscale": 1.0,
        "mscale_all_dim": 0.5,
    },
    {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "attention_factor": 1.5},
    {**LONGROPE, "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64},
    {**LONGROPE, "rope_theta": 1e4, "attention_factor": 1.25, "original_max_position_embeddings": 64},
]


def decoder(raw: dict[str, Any]) -> DecoderConfig:
    return read_config(raw)[0]


@pytest.mark.parametrize("rope", ROPE, ids=[f"{i}-{rope['rope_type']}" for i, rope in enumerate(ROPE)])
@pytest.mark.parametrize("age", ["new", "old", "older"])
def test_rotary_frequencies_are_those_of_transformers(rope: dict[str, Any], age: str) -> None:
    """Each kind of scaling, wherever and under whatever name a version of the file keeps it."""
    rest = {name: value for name, value in rope.items() if name not in ("rope_theta", "rope_type")}
    given = {
        "new": {"rope_parameters": rope},
        "old": {"rope_theta": rope["rope_theta"], "rope_scaling": {**rest, "rope_type": rope["rope_type"]}},
        "older": {"rope_theta": rope["rope_theta"], "rope_scaling": {**rest, "type": rope["rope_type"]}},
    }[age]
    rotary = LlamaRotaryEmbedding(LlamaConfig(**{**LLAMA, "rope_parameters": dict(rope)}))
    (found,) = decoder({**LLAMA, **given}).rotations
    assert torch.allclose(torch.tensor(found.frequencies), rotary.inv_freq, rtol=2e-7, atol=0)
    assert found.factor == pytest.approx(rotary.attention_scaling)


@pytest.mark.parametrize(
    ("raw", "cls"),
    [
        (LLAMA, LlamaConfig),
        ({**LLAMA, "num_key_value_heads": 2, "head_dim": 32, "tie_word_embeddings": True}, LlamaConfig),
        ({**LLAMA, "num_attention_heads": 8, "model_type": "mistral", "architectures": None}, MistralConfig),
        (GPT2, GPT2Config),
        ({**GPT2, "n_inner": 96, "tie_word_embeddings": False, "activation_function": "relu"}, GPT2Config),
    ],
)
def test_what_a_file_leaves_out_is_what_transformers_assumes(raw: dict[str, Any], cls: Any) -> None:
    """A short file and the whole configuration that transformers makes of it mean the same."""
    assert decoder(raw) == decoder(cls(**raw).to_dict())


def test_shapes_are_read() -> None:
    """The numbers end up under their names."""
    llama = decoder({**LLAMA, "num_key_value_heads": 2, "rms_norm_eps": 1e-5})
    assert (len(llama.layers), llama.hidden, llama.intermediate, llama.vocabulary) == (2, 64, 100, 600)
    assert (llama.heads, llama.kv_heads, llama.head_dim, llama.context_length) == (4, 2, 16, 256)
    assert (llama.norm_epsilon, llama.activation, llama.tied) == (1e-5, "silu", False)
    gpt2 = decoder(GPT2)
    assert (gpt2.intermediate, gpt2.kv_heads, gpt2.activation, gpt2.tied) == (256, 4, "gelu_tanh", True)
    assert gpt2.rotations == ()


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({**LLAMA, "model_type": "qwen2"}, "LlamaForCausalLM"),
        ({"model_type": "mpt"}, "mpt"),
        ({}, "None"),
        ({**LLAMA, "architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({**LLAMA, "quantization_config": {"quant_method": "gptq"}}, "quantized"),
        ({**LLAMA, "hidden_act": "quick_gelu"}, "quick_gelu"),
        ({**LLAMA, "rope_scaling": {"type": "dynamic", "factor": 2.0, "alpha": 1000.0}}, "dynamic"),
        ({**LLAMA, "rope_scaling": {"rope_type": "ntk", "factor": 2.0}}, "ntk"),
        ({**LLAMA, "rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "low_freq_factor"),
        ({**LLAMA, "partial_rotary_factor": 0.5}, "part of each head"),
        ({**LLAMA, "rope_parameters": {"partial_rotary_factor": 0.5}}, "part of each head"),
        ({k: v for k, v in LLAMA.items() if k != "hidden_size"}, "hidden_size"),
        ({**LLAMA, "num_attention_heads": 0}, "ZeroDivisionError"),
        ({**LLAMA, "num_key_value_heads": 3}, "3 key heads"),
        ({**LLAMA, "vocab_size": "600"}, "vocabulary is '600'"),
        ({**LLAMA, "num_hidden_layers": 0}, "0 layers"),
        ({**GPT2, "scale_attn_weights": False}, "scale_attn_weights"),
        ({**GPT2, "scale_attn_by_inverse_layer_idx": True}, "inverse_layer"),
        ({**GPT2, "reorder_and_upcast_attn": True}, "upcast"),
        ({**GPT2, "add_cross_attention": True}, "cross"),
    ],
)
def test_what_is_not_known_is_refused_by_name(raw: dict[str, Any], said: str) -> None:
    """Nothing is guessed."""
    with pytest.raises(UnsupportedDecoder, match=said):
        decoder(raw)


@pytest.mark.parametrize(
    "name", ["silu", "swish", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu", "relu2"]
)
def test_activations_are_known_by_all_their_names(name: str) -> None:
    """Each of transformers' names is the function that ours says."""
    functions = {
        "silu": torch.nn.functional.silu,
        "gelu": torch.nn.functional.gelu,
        "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
        "relu": torch.relu,
        "relu2": lambda x: torch.relu(x).square(),
    }
    found = decoder({**LLAMA, "hidden_act": name}).activation
    x = torch.linspace(-4, 4, 200)
    assert torch.allclose(functions[found](x), ACT2FN[name](x), atol=1e-6)


def test_it_survives_json() -> None:
    """Through text and back, to the last bit."""
    config = decoder({**LLAMA, "rope_scaling": ROPE[2]})
    assert DecoderConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
