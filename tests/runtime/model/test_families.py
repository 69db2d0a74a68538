"""Each family and option, read from a checkpoint's files, computes the same logits as transformers' own model."""

from __future__ import annotations

import contextlib
import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from runtime.loading.convert import convert, with_actual_head
from runtime.loading.safetensors_source import SafetensorsSource
from runtime.loading.tensor_source import StateDictSource
from runtime.model.config import DecoderConfig, UnsupportedDecoder
from runtime.model.families import FAMILIES, configured_end_ids, read_config
from runtime.model.tensors import biases, matrices, vectors
from tests.support.expert_models import EXPERT_CASES
from tests.support.family_models import CASES, MIXED, SMALL, WIDE, random_model, with_random_parameters
from tests.support.numpy_decoder import Array, logits

IDS = np.random.default_rng(7).integers(3, 99, 60).tolist()


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


ALL_CASES = {**CASES, **EXPERT_CASES}


@pytest.mark.parametrize("case", ALL_CASES)
def test_the_description_computes_the_model(case: str, tmp_path: Path) -> None:
    """All of a family's options, from the files to the logits."""
    family, options = ALL_CASES[case]
    model = random_model(family, options)
    model.save_pretrained(tmp_path)
    config, tensors = read(tmp_path)
    with torch.inference_mode():
        expected = model(torch.tensor(IDS)[None]).logits[0].numpy()
    assert expected.std() > 0.1
    actual = logits(config, tensors, IDS)
    assert np.abs(actual - expected).max() < 1e-3
    assert np.array_equal(actual.argmax(-1), expected.argmax(-1))


def test_the_text_part_of_a_multimodal_gemma3(tmp_path: Path) -> None:
    """Its tensors in the newer and the older layout; the options that its configuration leaves out are the defaults."""
    text = {**SMALL, **WIDE, "num_hidden_layers": 3, "sliding_window": 12, "layer_types": MIXED}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 8, "patch_size": 4}
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    model = with_random_parameters(transformers.Gemma3ForConditionalGeneration(config))
    model.save_pretrained(tmp_path)
    with torch.inference_mode():
        expected = model(torch.tensor(IDS)[None]).logits[0].numpy()
    described, tensors = read(tmp_path)
    assert np.abs(logits(described, tensors, IDS) - expected).max() < 1e-3

    raw = json.loads((tmp_path / "config.json").read_bytes())
    config, layout = read_config(raw)
    assert config == described
    state = model.state_dict()
    for change in (
        lambda name: name,
        lambda name: name.replace("model.language_model.", "language_model.model.").replace(
            "lm_", "language_model.lm_"
        ),
    ):
        source = StateDictSource({change(name): tensor for name, tensor in state.items()})
        assert {weight.name for weight in convert(config, layout, source)} == tensors.keys()
    bare = {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "num_hidden_layers": 34}}
    whole = transformers.Gemma3Config(text_config={"num_hidden_layers": 34}).to_dict()
    assert read_config(bare) == read_config(whole)


INCOMPLETE: dict[str, dict[str, Any]] = {
    "dots1": {"n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 2},
    "glm4_moe": {"head_dim": 128},
}
"""Options without which the defaults of a configuration describe no model."""


def test_every_causal_model_of_transformers_is_described_or_refused() -> None:
    """By the defaults of its configuration; never is there an error of another kind."""
    described = set()
    for kind, model in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
        try:
            raw = transformers.CONFIG_MAPPING[kind](**INCOMPLETE.get(kind, {})).to_dict()
        except StrictDataclassClassValidationError:  # its own defaults are not valid
            raw = {"model_type": kind}
        for classes in (None, [model] if isinstance(model, str) else list(model)):
            with contextlib.suppress(UnsupportedDecoder):
                read_config({**raw, "architectures": classes})
                described.add(raw["model_type"])
    assert described == FAMILIES.keys()


FACTORS = ("short_factor", "long_factor")
SIZES = {"hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "max_position_embeddings"}
SIZES |= {"n_embd", "n_layer", "n_head", "n_positions", "num_layers", "num_heads", "ffn_dim", "vocab_size"}


@pytest.mark.parametrize("kind", FAMILIES)
def test_what_a_file_leaves_out_is_what_transformers_assumes(kind: str) -> None:
    """Each option that a file may lack, and the tokens that end a text."""
    config, needed = transformers.CONFIG_MAPPING[kind], INCOMPLETE.get(kind, {})
    raw = config(**needed).to_dict()
    for name in raw.keys() - SIZES - {"model_type"} - needed.keys():
        short = {key: value for key, value in raw.items() if key != name}
        expected = read_config(config(**copy.deepcopy(short)).to_dict())
        assert read_config(short) == expected, name
    for name in raw.keys() & SIZES:
        with contextlib.suppress(UnsupportedDecoder):
            short = {key: value for key, value in raw.items() if key != name}
            assert read_config(short) == read_config(raw), name
    ids = config().get_text_config().eos_token_id
    assert configured_end_ids({"model_type": kind}, None) == ids
    assert configured_end_ids({"model_type": kind}, {"eos_token_id": [7]}) == [7]


@pytest.mark.parametrize(
    ("kind", "old"),
    [
        (
            "gemma3_text",
            {"rope_theta": 2e6, "rope_local_base_freq": 2e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
            | {"sliding_window_pattern": 3},
        ),
        ("olmo3", {"rope_theta": 3e5, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}),
        ("gpt_neox", {"rotary_pct": 0.5, "rotary_emb_base": 5000}),
        ("phi3", {"rope_theta": 2e4, "rope_scaling": {"type": "longrope", **dict.fromkeys(FACTORS, [2.0] * 48)}}),
        ("phi", {"rope_theta": 2e4, "partial_rotary_factor": 0.375}),
        ("lfm2", {"block_ff_dim": 100, "tie_embedding": False, "full_attn_idxs": [1, 3]}),
        ("cohere2", {"sliding_window_pattern": 2}),
        ("bloom", {"n_embed": 128, "num_attention_heads": 4}),
        ("gpt2", {"hidden_size": 96, "num_hidden_layers": 3}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 1000, "max_window_layers": 7}),
        ("qwen2_moe", {"use_sliding_window": True, "sliding_window": 1000, "max_window_layers": 7}),
        ("qwen3_moe", {"num_experts": 16}),
        ("lfm2_moe", {"tie_embedding": False}),
        ("minimax_m2", {"rotary_dim": 64}),
    ],
)
def test_older_names_of_options_are_read(kind: str, old: dict[str, Any]) -> None:
    """As transformers reads them."""
    config = transformers.CONFIG_MAPPING[kind]
    raw = {key: value for key, value in config().to_dict().items() if key not in ("rope_parameters", "layer_types")}
    newer = {"gpt2": {"n_embd", "n_layer"}, "bloom": {"hidden_size", "n_head"}, "lfm2": {"intermediate_size"}}
    newer |= {"qwen3_moe": {"num_local_experts"}, "lfm2_moe": {"tie_word_embeddings"}}
    raw = {key: value for key, value in raw.items() if key not in newer.get(kind, ())} | old
    assert read_config(raw) == read_config(config(**copy.deepcopy(raw)).to_dict())
    assert read_config(raw) != read_config(config().to_dict())


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("opt", {"do_layer_norm_before": False}, "do_layer_norm_before=False"),
        ("opt", {"word_embed_proj_dim": 512}, "word_embed_proj_dim=512"),
        ("opt", {"_remove_final_layer_norm": True}, "_remove_final_layer_norm"),
        ("falcon", {"alibi": True}, "alibi"),
        ("falcon", {"num_ln_in_parallel_attn": 2}, "num_ln_in_parallel_attn=2"),
        ("olmo", {"clip_qkv": 8.0}, "clip_qkv=8.0"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ("gptj", {"rotary_dim": None}, "rotary_dim"),
        ("bloom", {"apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm"),
        ("gpt_bigcode", {"scale_attn_weights": False}, "scale_attn_weights"),
        ("qwen2", {"layer_types": ["chunked_attention"] * 32}, "chunked_attention"),
        ("gemma3", {"text_config": {"quantization_config": {"bits": 4}}}, "quantized"),
        ("olmoe", {"clip_qkv": 8.0}, "clip_qkv=8.0"),
        (
            "glm4_moe",
            {"head_dim": 128, "n_group": 8, "topk_group": 4},
            "group-limited routing .n_group=8, topk_group=4",
        ),
        ("hy_v3", {"mlp_layer_types": ["dense", "other"]}, "MLPs of type other"),
        ("mixtral", {"num_experts_per_tok": 9}, "9 experts for a token, of 8"),
        ("qwen3_moe", {"moe_intermediate_size": "wide"}, "intermediate of the experts is 'wide'"),
        ("phimoe", {}, "architecture phimoe"),
    ],
)
def test_options_that_are_not_supported_are_refused_by_name(kind: str, options: dict[str, Any], said: str) -> None:
    """None is passed over."""
    raw = transformers.CONFIG_MAPPING[kind]().to_dict() | options
    with pytest.raises(UnsupportedDecoder, match=said):
        read_config(raw)
