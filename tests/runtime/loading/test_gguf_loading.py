"""GGUF files: split ones are read as one, and every tensor is asked for."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from runtime.errors import ModelUnavailable
from runtime.loading.gguf_loading import GgufTensors
from runtime.loading.loader import open_serving
from runtime.model.catalogue import parse_model_name
from runtime.model.gguf_split import parts
from tests.support.checkpoints import loaded, logits, refusal
from tests.support.models import rewrite_gguf, train_tokenizer


@pytest.fixture
def split(tiny_gguf: Path, tmp_path: Path) -> list[Path]:
    """The same in four parts."""
    return parts(rewrite_gguf(tiny_gguf, tmp_path / "split.gguf", split_tensors=5))


def model(path: Path) -> Any:
    return loaded(path).model


@pytest.mark.parametrize("named", ["the first", "the last", "their folder"])
def test_the_parts_of_a_split_file_are_read_as_one(tiny_gguf: Path, split: list[Path], named: str) -> None:
    """Whichever of them is named."""
    path = {"the first": split[0], "the last": split[-1], "their folder": split[0].parent}[named]
    assert torch.equal(logits(model(path)), logits(model(tiny_gguf)))


def test_a_snapshot_belongs_to_all_parts(split: list[Path], tmp_path: Path) -> None:
    """It is made anew when one of them has changed."""
    spec = parse_model_name(str(split[2]))
    assert spec.id == "split"
    for _ in range(2):
        snapshot = open_serving(spec, "float32", tmp_path / "cache", lambda stage, share: None)
        assert snapshot.facts.source == split[0].name
        os.utime(split[-1], ns=(1, 1))
    assert len(list((tmp_path / "cache" / "serving").iterdir())) == 2


@pytest.mark.parametrize("number", [0, 1, 3])
def test_a_part_that_is_missing_is_named(split: list[Path], number: int) -> None:
    """Also the first, which holds the metadata."""
    split[number].unlink()
    named = next(part for part in split if part.is_file())
    assert f"split into 4 files, of which {split[number].name} is missing" in refusal(named)


def test_parts_of_another_model_are_refused(tiny_gguf: Path, split: list[Path], tmp_path: Path) -> None:
    """Each says which part it is, and the first how many tensors there are."""
    whole = split[1].read_bytes()
    shutil.copy(split[2], split[1])
    assert f"{split[1].name} is not part 2 of 4" in refusal(split[0])
    split[1].write_bytes(whole)
    short = rewrite_gguf(tiny_gguf, tmp_path / "short.gguf", split_tensors=6)
    shutil.copy(parts(short)[1], split[1])
    assert "the 4 parts hold 21 tensors, not 20" in refusal(split[0])


def test_a_part_under_another_name_is_refused(split: list[Path], tmp_path: Path) -> None:
    """It is no whole file."""
    file = Path(shutil.copy(split[0], tmp_path / "model.gguf"))
    assert "one of 4 parts" in refusal(file)


def test_files_beside_it_do_not_matter(tiny_gguf: Path, tmp_path: Path) -> None:
    """Such as the index of a checkpoint whose weights were not downloaded."""
    file = Path(shutil.copy(tiny_gguf, tmp_path / "model.gguf"))
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}')
    assert torch.equal(logits(model(file)), logits(model(tiny_gguf)))


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "an absent tensor": (
        {"names": lambda name: None if name == "blk.1.ffn_up.weight" else name},
        "(blk.1.ffn_up.weight missing)",
    ),
    "a renamed tensor": (
        {"names": lambda name: name.replace("blk.1.ffn_up", "blk.1.ffn_other")},
        "(blk.1.ffn_up.weight missing and blk.1.ffn_other.weight left over)",
    ),
    "a tensor that the model has no place for": (
        {"extra": {"blk.1.attn_q.bias": np.ones(64, np.float32)}},
        "no place for blk.1.attn_q.bias",
    ),
    "a tensor of another shape": (
        {
            "names": lambda name: None if name == "output_norm.weight" else name,
            "extra": {"output_norm.weight": np.ones(65, np.float32)},
        },
        "output_norm.weight is [65] where its configuration needs [64]",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_not_the_model_is_refused_by_name(tiny_gguf: Path, tmp_path: Path, fault: str) -> None:
    """By both engines, and by the names that the file has."""
    changes, said = FAULTS[fault]
    file = rewrite_gguf(tiny_gguf, tmp_path / "wrong.gguf", **changes)
    assert said in refusal(file)
    with pytest.raises(ModelUnavailable, match=re.escape(said)):
        open_serving(parse_model_name(str(file)), "float32", tmp_path / "cache", lambda stage, share: None)


def test_half_of_a_fused_parameter_is_not_enough() -> None:
    """transformers leaves the other half zeros, and does not report the parameter as missing."""
    tensors = GgufTensors()
    tensors.mapped({"blk.0.ffn_gate_exps": "gate_up", "blk.0.ffn_up_exps": "gate_up", "blk.0.ffn_down_exps": "down"})
    found: Any = type("Reader", (), {"tensors": [type("Tensor", (), {"name": "blk.0.ffn_gate_exps.weight"})]})
    tensors.read(found)
    assert tensors.half_filled() == {"blk.0.ffn_up_exps"}


_LFM2_NAMES = (
    (r"^model\.embed_tokens\.", "token_embd."),
    (r"^model\.embedding_norm\.", "token_embd_norm."),
    (r"^model\.layers\.", "blk."),
    (r"operator_norm", "attn_norm"),
    (r"self_attn\.(.)_proj", r"attn_\1"),
    (r"self_attn\.out_proj", "attn_output"),
    (r"self_attn\.(.)_layernorm", r"attn_\1_norm"),
    (r"feed_forward\.w1", "ffn_gate"),
    (r"feed_forward\.w3", "ffn_up"),
    (r"feed_forward\.w2", "ffn_down"),
    (r"\.conv\.(in_proj|out_proj|conv)\.", r".shortconv.\1."),
)


def save_lfm2(folder: Path, change: Callable[[str], str]) -> tuple[Any, Path]:
    """A tiny model of an architecture that transformers reads in its newer way, and its first part as a split GGUF."""
    from transformers import Lfm2Config, Lfm2ForCausalLM

    tokenizer = train_tokenizer()
    shape = {"vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 96, "max_position_embeddings": 128}
    shape |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}
    config = Lfm2Config(**shape, block_auto_adjust_ff_dim=False, layer_types=["conv", "full_attention"])
    torch.manual_seed(0)
    model: Any = Lfm2ForCausalLM(config).eval()
    file = folder / "lfm2.gguf"
    writer = gguf.GGUFWriter(file, "lfm2", split_max_tensors=6)
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv([0, 2])
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_shortconv_l_cache(config.conv_L_cache)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([tokenizer.convert_ids_to_tokens(i) for i in range(len(tokenizer))])
    writer.add_token_types([3 if i == 0 else 1 for i in range(len(tokenizer))])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_eos_token_id(0)
    for key, weight in model.state_dict().items():
        name = key
        for pattern, new in _LFM2_NAMES:
            name = re.sub(pattern, new, name)
        if key != "lm_head.weight":
            writer.add_tensor(change(name), (weight.squeeze(1) if weight.dim() == 3 else weight).numpy())
    writer.write_header_to_file(file)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model, folder / "lfm2-00001-of-00004.gguf"


def test_the_newer_reader_is_no_exception(tmp_path: Path) -> None:
    """Some architectures are read in another way: split files are joined there too, and faults named."""
    expected, file = save_lfm2(tmp_path, lambda name: name)
    assert torch.allclose(logits(model(file)), logits(expected), atol=1e-4)
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    _, file = save_lfm2(tmp_path, lambda name: name.replace("blk.1.ffn_up", "blk.1.ffn_other"))
    assert "feed_forward.w3.weight missing and model.layers.1.ffn_other.weight left over" in refusal(file)
