"""GGUF files give the decoder and the weights of the checkpoints that they were converted from, bit for bit."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from runtime.loading.convert import convert
from runtime.loading.gguf_families import read_gguf
from runtime.loading.gguf_source import open_gguf
from runtime.model.config import UnsupportedDecoder
from runtime.model.families import read_config
from runtime.model.gguf_header import GGUFHeader
from tests.support.gguf_cases import LAYER, RMS, Case, Keys, check_file, model_of, saved, sizes
from tests.support.gguf_models import save_gguf


def windowed(count: int, pattern: int) -> list[bool]:
    """Which layers have a sliding window."""
    return [bool((i + 1) % pattern) for i in range(count)]


GPT = {"num_key_value_heads": None}
CASES = {
    "llama": Case("llama", "llama", {}, {RMS: 1e-6, "vocab_size": 64, "rope.dimension_count": 16}),
    "llama, biases, tied, wide heads": Case(
        "llama",
        "llama",
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "head_dim": 32, "rms_norm_eps": 1e-5},
        {
            RMS: 1e-5,
            "rope.freq_base": 10_000.0,
            "rope.dimension_count": 32,
            "attention.key_length": 32,
            "attention.value_length": 32,
        },
    ),
    "llama, linear": Case(
        "llama",
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500_000.0}},
        {RMS: 1e-6, "rope.scaling.type": "linear", "rope.scaling.factor": 4.0, "rope.freq_base": 500_000.0},
    ),
    "mistral": Case(
        "llama",
        "mistral",
        {"sliding_window": None, "head_dim": 24},
        {RMS: 1e-6, "attention.key_length": 24, "attention.value_length": 24, "rope.dimension_count": 24},
    ),
    "qwen2": Case("qwen2", "qwen2", {"tie_word_embeddings": True}, {RMS: 1e-6, "rope.freq_base": 10_000.0}),
    "qwen3": Case(
        "qwen3",
        "qwen3",
        {"head_dim": 32, "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0}},
        {RMS: 1e-6, "rope.freq_base": 1_000_000.0, "attention.key_length": 32, "attention.value_length": 32},
    ),
    "gemma": Case(
        "gemma", "gemma", {"head_dim": 32}, {RMS: 1e-6, "attention.key_length": 32, "attention.value_length": 32}
    ),
    "gemma2": Case(
        "gemma2",
        "gemma2",
        {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 40},
        {
            RMS: 1e-6,
            "attention.key_length": 32,
            "attention.value_length": 32,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "attention.sliding_window": 40,
        },
    ),
    "gemma3": Case(
        "gemma3",
        "gemma3_text",
        {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 40, "num_hidden_layers": 7},
        {
            RMS: 1e-6,
            "attention.key_length": 32,
            "attention.value_length": 32,
            "rope.freq_base": 1_000_000.0,
            "attention.sliding_window": 40,
        },
    ),
    "gemma3, linear": Case(
        "gemma3",
        "gemma3_text",
        {
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": 40,
            "num_hidden_layers": 7,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            },
        },
        {
            RMS: 1e-6,
            "attention.key_length": 32,
            "attention.value_length": 32,
            "rope.freq_base": 1_000_000.0,
            "rope.scaling.type": "linear",
            "rope.scaling.factor": 8.0,
            "attention.sliding_window": 40,
            "attention.sliding_window_pattern": windowed(7, 6),
        },
    ),
    "smollm3": Case(
        "smollm3",
        "smollm3",
        {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 5_000_000.0}},
        {RMS: 1e-6, "rope.freq_base": 5_000_000.0, "rope.dimension_count": 16},
    ),
    "granite": Case(
        "granite",
        "granite",
        {"attention_multiplier": 0.1, "embedding_multiplier": 12.0, "residual_multiplier": 0.22, "logits_scaling": 8.0},
        {RMS: 1e-6, "attention.scale": 0.1, "embedding_scale": 12.0, "residual_scale": 0.22, "logit_scale": 8.0},
    ),
    "olmo": Case("olmo", "olmo", {}, {LAYER: 1e-5}),
    "olmo2": Case(
        "olmo2",
        "olmo2",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}, "rms_norm_eps": 1e-5},
        {RMS: 1e-5, "rope.freq_base": 500_000.0},
    ),
    "phi2": Case(
        "phi2",
        "phi",
        {**GPT, "partial_rotary_factor": 0.5},
        {LAYER: 1e-5, "rope.dimension_count": 8},
    ),
    "phi3": Case(
        "phi3",
        "phi3",
        {"sliding_window": None},
        {
            RMS: 1e-5,
            "rope.dimension_count": 16,
            "rope.scaling.original_context_length": 128,
            "attention.sliding_window": 0,
        },
    ),
    "phi3, windows": Case(
        "phi3",
        "phi3",
        {"sliding_window": 40},
        {RMS: 1e-5, "rope.dimension_count": 16, "attention.sliding_window": 40},
    ),
    "phi3, partial": Case(
        "phi3",
        "phi3",
        {"sliding_window": None, "partial_rotary_factor": 0.75, "tie_word_embeddings": True},
        {RMS: 1e-5, "rope.dimension_count": 12, "rope.scaling.original_context_length": 128},
    ),
    "stablelm": Case(
        "stablelm",
        "stablelm",
        {"use_qkv_bias": True, "partial_rotary_factor": 0.25},
        {LAYER: 1e-5, "rope.dimension_count": 4, "use_parallel_residual": True},
    ),
    "gpt2": Case("gpt2", "gpt2", GPT, {LAYER: 1e-5}),
    "gptneox": Case(
        "gptneox",
        "gpt_neox",
        {**GPT, "rotary_pct": 0.25},
        {LAYER: 1e-5, "rope.dimension_count": 4, "use_parallel_residual": True},
    ),
    "gptneox, sequential": Case(
        "gptneox",
        "gpt_neox",
        {**GPT, "rotary_pct": 1.0, "use_parallel_residual": False},
        {LAYER: 1e-5, "rope.dimension_count": 16, "use_parallel_residual": False},
    ),
    "starcoder": Case("starcoder", "gpt_bigcode", GPT, {LAYER: 1e-5, "attention.head_count_kv": 1}),
    "starcoder2": Case("starcoder2", "starcoder2", {"sliding_window": None}, {LAYER: 1e-5}),
    "bloom": Case("bloom", "bloom", {**GPT, "seq_length": 128}, {LAYER: 1e-5}),
    "falcon": Case(
        "falcon",
        "falcon",
        {**GPT, "multi_query": True, "new_decoder_architecture": False, "alibi": False, "bias": False},
        {LAYER: 1e-5, "attention.head_count_kv": 1, "tensor_data_layout": "jploski"},
    ),
    "falcon, new": Case(
        "falcon",
        "falcon",
        {**GPT, "num_kv_heads": 2, "new_decoder_architecture": True, "alibi": False, "bias": False},
        {LAYER: 1e-5, "attention.head_count_kv": 2, "tensor_data_layout": "jploski"},
    ),
    "exaone4": Case(
        "exaone4",
        "exaone4",
        {"sliding_window": None, "rms_norm_eps": 1e-5, "layer_types": ["full_attention"] * 4},
        {RMS: 1e-5, "rope.freq_base": 10_000.0},
    ),
    "exaone4, windows": Case(
        "exaone4",
        "exaone4",
        {"sliding_window": 40, "sliding_window_pattern": 4, "rms_norm_eps": 1e-5},
        {
            RMS: 1e-5,
            "attention.sliding_window": 40,
            "attention.sliding_window_pattern": windowed(4, 4),
        },
    ),
    "ernie4_5": Case(
        "ernie4_5",
        "ernie4_5",
        {"tie_word_embeddings": True, "rms_norm_eps": 1e-5, "head_dim": 32},
        {RMS: 1e-5, "rope.freq_base": 500_000.0, "attention.key_length": 32, "attention.value_length": 32},
    ),
    "nemotron": Case(
        "nemotron",
        "nemotron",
        {"partial_rotary_factor": 0.5, "norm_eps": 1e-5},
        {LAYER: 1e-5, "rope.dimension_count": 8, "rope.scaling.type": "none"},
    ),
    "command-r": Case(
        "command-r",
        "cohere",
        {"logit_scale": 0.0625, "layer_norm_eps": 1e-5},
        {LAYER: 1e-5, "logit_scale": 0.0625, "rope.scaling.type": "none", "rope.freq_base": 500_000.0},
    ),
    "lfm2": Case(
        "lfm2",
        "lfm2",
        {"layer_types": ["conv", "full_attention", "conv", "full_attention"], "block_auto_adjust_ff_dim": False},
        {RMS: 1e-5, "shortconv.l_cache": 3, "attention.head_count_kv": [0, 2, 0, 2], "rope.freq_base": 1_000_000.0},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_file_gives_its_checkpoints_decoder_and_weights(name: str, tmp_path: Path) -> None:
    """Each architecture, from the rearrangements of the converter back to one and the same arrangement."""
    check_file(CASES[name], tmp_path / "model.gguf")


def header_of(metadata: Keys, file: Path) -> GGUFHeader:
    """The header of a small Llama with changed metadata; None removes a key."""
    saved(CASES["llama"], file)
    header, _ = open_gguf(file)
    changed = {f"llama.{key}": value for key, value in metadata.items()}
    kept = {key: value for key, value in (dict(header.metadata) | changed).items() if value is not None}
    return GGUFHeader(kept, header.tensors)


@pytest.mark.parametrize(
    ("metadata", "named"),
    [
        ({"attention.sliding_window": 16}, "attention.sliding_window=16"),
        ({"attention.clamp_kqv": 8.0}, "attention.clamp_kqv=8.0"),
        ({"attention.value_length": 32}, "attention.value_length=32"),
        ({"rope.dimension_count": 8}, "rope.dimension_count=8"),
        ({"rope.scaling.type": "klingon"}, "rope.scaling.type=klingon"),
        ({"feed_forward_length": np.array([96, 96, 64, 96])}, "different values of feed_forward_length"),
        ({"block_count": None}, "llama.block_count"),
        ({RMS: None}, "layer_norm_rms_epsilon"),
        ({"context_length": "long"}, "incomplete GGUF metadata .*'long'"),
        ({"attention.head_count": 0}, "incomplete GGUF metadata"),
    ],
)
def test_what_the_decoder_does_not_support_is_refused_by_name(metadata: Keys, named: str, tmp_path: Path) -> None:
    """A value that would change results, and one that is missing or impossible."""
    with pytest.raises(UnsupportedDecoder, match=named):
        read_gguf(header_of(metadata, tmp_path / "model.gguf"))


def test_unknown_keys_are_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They may be new and matter."""
    with caplog.at_level("WARNING", "warmstart.load"):
        read_gguf(header_of({"attention.telepathy": 3}, tmp_path / "model.gguf"))
    assert "llama.attention.telepathy" in caplog.text


@pytest.mark.parametrize("architecture", ["mamba", "deepseek2", "rwkv7"])
def test_other_architectures_are_refused_by_name(architecture: str) -> None:
    """State spaces, compressed keys and linear attention."""
    with pytest.raises(UnsupportedDecoder, match=architecture):
        read_gguf(GGUFHeader({"general.architecture": architecture}, {}))


def test_quantized_matrices_are_read_in_pieces(tmp_path: Path) -> None:
    """The embedding, which is by far the largest; the pieces are those of the whole."""
    case = CASES["gemma"]
    state = {name: value.numpy() for name, value in model_of(case).state_dict().items() if name != "lm_head.weight"}
    decoder, _ = read_config(model_of(case).config.to_dict())
    kind = gguf.GGMLQuantizationType.Q8_0
    save_gguf(tmp_path / "model.gguf", "gemma", state, sizes(decoder) | case.keys, {}, kind=kind)
    header, source = open_gguf(tmp_path / "model.gguf")
    _, layout, _, _ = read_gguf(header)
    embed = next(weight for weight in convert(decoder, layout, source) if weight.name == "embed")
    assert embed.read_rows is not None
    assert np.array_equal(np.concatenate([embed.read_rows(0, 16), embed.read_rows(16, 64)]), embed.read())
    assert np.abs(embed.read() - state["model.embed_tokens.weight"]).max() < 0.02
