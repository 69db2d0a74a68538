"""GGUF files of mixtures of experts: the decoders and weights of their checkpoints, and what is refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from runtime.errors import ModelUnavailable
from runtime.loading.convert import convert
from runtime.loading.gguf_families import read_gguf
from runtime.loading.gguf_source import GgufSource, open_gguf
from runtime.model.config import UnsupportedDecoder
from runtime.model.gguf_header import GGUFHeader
from tests.support.gguf_cases import RMS, Case, Keys, check_file, saved

EXPERTS = {"expert_count": 6, "expert_used_count": 2}
CASES = {
    "llama": Case(
        "llama",
        "mixtral",
        {"num_local_experts": 6, "num_experts_per_tok": 2},
        {RMS: 1e-5, "rope.freq_base": 1_000_000.0, "rope.dimension_count": 16, **EXPERTS},
    ),
    "qwen2moe": Case(
        "qwen2moe",
        "qwen2_moe",
        {
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 40,
        },
        {RMS: 1e-6, **EXPERTS, "expert_feed_forward_length": 24, "expert_shared_feed_forward_length": 40},
    ),
    "qwen2moe, widths not given": Case(
        "qwen2moe",
        "qwen2_moe",
        {
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "shared_expert_intermediate_size": 96,
        },
        {RMS: 1e-6, **EXPERTS},
    ),
    "qwen3moe": Case(
        "qwen3moe",
        "qwen3_moe",
        {
            "head_dim": 32,
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "norm_topk_prob": True,
        },
        {
            RMS: 1e-6,
            "attention.key_length": 32,
            "attention.value_length": 32,
            "expert_feed_forward_length": 32,
            "expert_weights_norm": True,
            **EXPERTS,
        },
    ),
    "olmoe": Case(
        "olmoe",
        "olmoe",
        {"num_key_value_heads": 4, "num_experts": 6, "num_experts_per_tok": 2},
        {RMS: 1e-5, **EXPERTS},
    ),
    "granitemoe": Case(
        "granitemoe",
        "granitemoe",
        {
            "num_local_experts": 6,
            "num_experts_per_tok": 2,
            "attention_multiplier": 0.1,
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "logits_scaling": 6.0,
            "tie_word_embeddings": True,
        },
        {
            RMS: 1e-6,
            "attention.scale": 0.1,
            "embedding_scale": 12.0,
            "residual_scale": 0.22,
            "logit_scale": 6.0,
            **EXPERTS,
        },
    ),
    "granitemoe, shared": Case(
        "granitemoe",
        "granitemoeshared",
        {"num_local_experts": 6, "num_experts_per_tok": 2, "shared_intermediate_size": 40},
        {RMS: 1e-6, "attention.scale": 1.0, "logit_scale": 1.0, "expert_shared_feed_forward_length": 40, **EXPERTS},
    ),
    "lfm2moe": Case(
        "lfm2moe",
        "lfm2_moe",
        {
            "layer_types": ["conv", "full_attention", "conv", "full_attention"],
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "num_dense_layers": 1,
        },
        {
            RMS: 1e-5,
            "shortconv.l_cache": 3,
            "attention.head_count_kv": [0, 2, 0, 2],
            "rope.freq_base": 1_000_000.0,
            "expert_feed_forward_length": 32,
            "expert_gating_func": 2,
            "leading_dense_block_count": 1,
            **EXPERTS,
        },
    ),
    "ernie4_5-moe": Case(
        "ernie4_5-moe",
        "ernie4_5_moe",
        {
            "moe_num_experts": 6,
            "moe_k": 2,
            "moe_intermediate_size": 32,
            "moe_num_shared_experts": 2,
            "moe_layer_start_index": 1,
        },
        {
            RMS: 1e-5,
            "rope.freq_base": 500_000.0,
            "expert_feed_forward_length": 32,
            "expert_shared_count": 2,
            "expert_shared_feed_forward_length": 64,
            "leading_dense_block_count": 1,
            "interleave_moe_layer_step": 1,
            **EXPERTS,
        },
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_file_gives_its_checkpoints_decoder_and_weights(name: str, tmp_path: Path) -> None:
    """Each architecture, with stacks of experts, widths that are padded, shared experts and layers without experts."""
    check_file(CASES[name], tmp_path / "model.gguf")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The cases as files."""
    folder = tmp_path_factory.mktemp("gguf")
    found = {name: folder / f"{name}.gguf" for name in CASES}
    for name, file in found.items():
        saved(CASES[name], file)
    return found


def changed(file: Path, metadata: Keys, without: str = "") -> tuple[GGUFHeader, GgufSource]:
    """A file with other metadata, None for none, and without one of its tensors."""
    header, _ = open_gguf(file)
    whole = dict(header.metadata) | {f"{header.architecture}.{key}": value for key, value in metadata.items()}
    tensors = {key: place for key, place in header.tensors.items() if key != without}
    header = GGUFHeader({key: value for key, value in whole.items() if value is not None}, tensors)
    return header, GgufSource(header)


@pytest.mark.parametrize(
    ("name", "metadata", "named"),
    [
        ("qwen3moe", {"expert_used_count": None}, "expert_used_count=None"),
        ("qwen3moe", {"expert_used_count": 0}, "expert_used_count=0"),
        ("llama", {"expert_used_count": 7}, "expert_used_count=7"),
        ("olmoe", {"expert_used_count": np.array([2, 2, 1, 2])}, "different values of expert_used_count"),
        ("qwen3moe", {"expert_feed_forward_length": np.array([8, 8, 8, 9])}, "expert_feed_forward_length"),
        ("qwen3moe", {"expert_count": None}, "GGUF architecture qwen3moe"),
        ("qwen3moe", {"expert_gating_func": 2}, "expert_gating_func=2"),
        ("lfm2moe", {"expert_gating_func": 1}, "expert_gating_func=1"),
        ("qwen3moe", {"expert_weights_norm": False}, "expert_weights_norm=False"),
        ("olmoe", {"expert_weights_norm": True}, "expert_weights_norm=True"),
        ("granitemoe", {"expert_weights_scale": 2.5}, "expert_weights_scale=2.5"),
        ("qwen3moe", {"expert_group_count": 4}, "expert_group_count=4"),
        ("qwen3moe", {"leading_dense_block_count": 1}, "leading_dense_block_count=1"),
        ("qwen2moe", {"expert_shared_count": 2}, "expert_shared_count=2"),
        ("ernie4_5-moe", {"expert_shared_feed_forward_length": 40}, "expert_shared_feed_forward_length=40"),
        ("ernie4_5-moe", {"expert_feed_forward_length": 0}, "expert_feed_forward_length=0"),
        ("qwen3moe", {"expert_feed_forward_length": 10**9}, "1000000000.* above the limit"),
    ],
)
def test_what_the_decoder_does_not_support_is_refused_by_name(
    name: str, metadata: Keys, named: str, files: dict[str, Path]
) -> None:
    """Values that would change results, and those that are missing or impossible."""
    header, _ = changed(files[name], metadata)
    with pytest.raises(UnsupportedDecoder, match=named):
        read_gguf(header)


def test_experts_of_an_architecture_without_them_are_refused(tmp_path: Path) -> None:
    """The key says that the file has experts, which the architecture does not compute."""
    saved(Case("qwen3", "qwen3", {}, {RMS: 1e-6, "expert_count": 8}), tmp_path / "model.gguf")
    header, _ = open_gguf(tmp_path / "model.gguf")
    with pytest.raises(UnsupportedDecoder, match="expert_count=8"):
        read_gguf(header)


@pytest.mark.parametrize(
    ("name", "metadata", "without", "named"),
    [
        ("qwen3moe", {"expert_count": 5}, "", r"ffn_\w+.weight is \[6, .*\[5, "),
        ("qwen3moe", {"expert_feed_forward_length": 48}, "", r"ffn_\w+_exps.weight is \[6, .*48"),
        ("qwen3moe", {}, "blk.2.ffn_up_exps.weight", "blk.2.ffn_up_exps.weight missing"),
        ("qwen3moe", {}, "blk.0.ffn_gate_inp.weight", "blk.0.ffn_gate_inp.weight missing"),
        ("qwen2moe", {}, "blk.1.ffn_gate_inp_shexp.weight", "blk.1.ffn_gate_inp_shexp.weight missing"),
        ("lfm2moe", {}, "blk.3.exp_probs_b.bias", "blk.3.exp_probs_b.bias missing"),
        ("lfm2moe", {"leading_dense_block_count": 2}, "", "blk.1.ffn_down.weight"),
        ("granitemoe, shared", {"expert_shared_feed_forward_length": None}, "", "no place for .*shexp"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    name: str, metadata: Keys, without: str, named: str, files: dict[str, Path]
) -> None:
    """A number of experts or a width that is not that of the stacks, and tensors that are missing or left over."""
    header, source = changed(files[name], metadata, without)
    decoder, layout, _, _ = read_gguf(header)
    with pytest.raises(ModelUnavailable, match=named):
        convert(decoder, layout, source)
