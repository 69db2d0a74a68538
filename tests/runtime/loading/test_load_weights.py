"""A checkpoint is loaded whole or refused by name, whatever form it comes in."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from runtime.errors import ModelUnavailable
from runtime.loading.loader import open_serving
from runtime.model.catalogue import parse_model_name
from tests.support.checkpoints import loaded, logits, refusal
from tests.support.models import save_multimodal, save_tiny_llama, train_tokenizer, with_tensors

Tensors = dict[str, Any]
UP = "model.layers.1.mlp.up_proj.weight"


def converts(folder: Path, cache: Path) -> None:
    """Load as for the fast engine."""
    open_serving(parse_model_name(str(folder)), "float32", cache, lambda stage, share: None)


def configured(folder: Path, **changes: Any) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


def sharded(folder: Path) -> Path:
    """The folder's tensors in two files with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(places.values()):
        part = {name: tensor for name, tensor in tensors.items() if places[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def pickled(folder: Path) -> Path:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


@pytest.mark.parametrize("form", [lambda folder: folder, sharded, pickled], ids=["one file", "sharded", "pickled"])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_taken_off(
    tiny_llama: Path, tmp_path: Path, prefix: str, form: Callable[[Path], Path]
) -> None:
    """Those of DataParallel, FSDP and ``torch.compile``, in every file format."""
    folder = form(with_tensors(tiny_llama, tmp_path / "m", lambda t: {prefix + name: v for name, v in t.items()}))
    assert torch.equal(logits(loaded(folder).model), logits(loaded(tiny_llama).model))


def test_another_prefix_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    """The tensors of the file and those of the model are named, the first few of many."""
    folder = with_tensors(tiny_llama, tmp_path / "m", lambda t: {f"wrapped.{name}": v for name, v in t.items()})
    message = refusal(folder)
    assert "lm_head.weight, model.embed_tokens.weight" in message
    assert "and 16 more missing" in message
    assert "wrapped.model.embed_tokens.weight" in message


def without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


FAULTS: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "a tensor less": (without(UP), f"({UP} missing)"),
    "a renamed tensor": (
        lambda t: {key.replace("up_proj", "w3"): tensor for key, tensor in t.items()},
        "model.layers.0.mlp.up_proj.weight, model.layers.1.mlp.up_proj.weight missing and "
        "model.layers.0.mlp.w3.weight, model.layers.1.mlp.w3.weight left over",
    ),
    "a tensor more": (lambda t: t | {UP.replace("weight", "bias"): t[UP][0]}, f"no place for {UP[:-6]}bias"),
    "a layer more": (lambda t: t | {UP.replace("1", "2"): t[UP]}, f"no place for {UP.replace('1', '2')}"),
    "another shape": (lambda t: t | {UP: t[UP][1:]}, f"{UP} is [127, 64] where its configuration needs [128, 64]"),
    "neither embedding nor head": (
        without("model.embed_tokens.weight"), "lm_head.weight, model.embed_tokens.weight missing"
    ),
    "nothing": (lambda t: {}, "and 16 more missing"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_not_the_model_is_refused_by_name(tiny_llama: Path, tmp_path: Path, fault: str) -> None:
    """Nothing is filled with random numbers, and nothing passed over."""
    change, said = FAULTS[fault]
    folder = with_tensors(tiny_llama, tmp_path / "m", change)
    assert said in refusal(folder)
    with pytest.raises(ModelUnavailable, match=re.escape(said)):
        converts(folder, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_head_of_its_own_must_be_there(tiny_llama: Path, tmp_path: Path) -> None:
    """If the configuration says that it is not the embedding."""
    folder = configured(shutil.copytree(tiny_llama, tmp_path / "m"), tie_word_embeddings=False)
    assert "(lm_head.weight missing)" in refusal(folder)


def _buffers(tensors: Tensors) -> Tensors:
    """As the first versions of GPT-2 were saved: no prefix, and the causal mask with its fill value."""
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    masks = {f"h.{i}.attn.bias": torch.ones(1, 1, 8, 8) for i in range(2)}
    return tensors | masks | {f"h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(2)}


@pytest.mark.parametrize(
    ("model", "change"),
    [
        ("tiny_gpt2", _buffers),
        ("tiny_llama", lambda t: t | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}),
        ("tiny_llama", lambda t: t | {"model.rotary_emb.inv_freq": torch.ones(8)}),
        ("tiny_llama", lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"].clone()}),
        ("tiny_llama", lambda t: {n.replace("model.embed_tokens", "lm_head"): v for n, v in t.items()}),
    ],
    ids=["masks", "frequencies of each layer", "frequencies", "both of a tied pair", "only the head of a tied pair"],
)
def test_what_older_versions_saved_beside_the_weights_is_passed_over(
    model: str, change: Callable[[Tensors], Tensors], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Buffers that are computed, and a tied head under either name."""
    source: Path = request.getfixturevalue(model)
    folder = with_tensors(source, tmp_path / "m", change)
    assert torch.equal(logits(loaded(folder).model), logits(loaded(source).model))


def test_a_bias_of_no_attention_is_no_mask(tiny_gpt2: Path, tmp_path: Path) -> None:
    """A mask belongs to an attention that the model has."""
    folder = with_tensors(tiny_gpt2, tmp_path / "m", lambda t: t | {"transformer.h.9.attn.masked_bias": torch.ones(1)})
    assert "no place for transformer.h.9.attn.masked_bias" in refusal(folder)


def test_a_missing_shard_is_named(tiny_llama: Path, tmp_path: Path) -> None:
    """The index says which files there should be."""
    folder = sharded(shutil.copytree(tiny_llama, tmp_path / "m"))
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "(model-00002-of-00002.safetensors missing)" in refusal(folder)


def test_an_adapter_among_the_models_files_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    """transformers would put it into the model by itself, unchecked."""
    folder = shutil.copytree(tiny_llama, tmp_path / "m")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    assert "adapter_config.json" in refusal(folder)


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose experts transformers puts together from tensors of their own."""
    from transformers import MixtralConfig, MixtralForCausalLM

    folder = tmp_path_factory.mktemp("models") / "mixtral"
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = MixtralConfig(vocab_size=600, num_key_value_heads=1, num_local_experts=2, **shape)
    MixtralForCausalLM(config).save_pretrained(folder)
    train_tokenizer().save_pretrained(folder)
    return folder


def test_a_missing_expert_is_named(mixtral: Path, tmp_path: Path) -> None:
    """By the tensor that cannot be put together without it."""
    assert logits(loaded(mixtral).model).isfinite().all()
    folder = with_tensors(mixtral, tmp_path / "m", without("model.layers.0.block_sparse_moe.experts.1.w1.weight"))
    with pytest.raises(ModelUnavailable, match=r"tensors for model\.layers\.0\.mlp\.experts\.gate_up_proj are missing"):
        loaded(folder)


# Multimodal models


@pytest.fixture(scope="module")
def mllama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose text model transformers loads alone."""
    return save_multimodal(tmp_path_factory.mktemp("models") / "mllama", "mllama", image_token_index=599)


def test_the_text_model_of_a_multimodal_one_is_served(mllama: Path) -> None:
    """Its vision tower and projector are left where they are."""
    from transformers import MllamaForConditionalGeneration

    whole: Any = MllamaForConditionalGeneration.from_pretrained(mllama)
    found = loaded(mllama).model
    assert type(found).__name__ == "MllamaForCausalLM"
    assert torch.allclose(logits(found), logits(whole), atol=1e-5)


def test_only_the_other_parts_of_a_multimodal_model_are_left_out(mllama: Path, tmp_path: Path) -> None:
    """What is under their names and not theirs is refused, as is what the text model lacks."""
    extra = {"vision_model.other.weight": torch.ones(2)}
    assert "no place for vision_model.other.weight" in refusal(
        with_tensors(mllama, tmp_path / "a", lambda t: t | extra)
    )
    name = next(
        name for name in load_file(mllama / "model.safetensors") if name.endswith("layers.0.mlp.up_proj.weight")
    )
    assert "layers.0.mlp.up_proj.weight missing" in refusal(with_tensors(mllama, tmp_path / "b", without(name)))


@pytest.mark.parametrize("kind", ["llava", "qwen2_vl", "mistral3"])
def test_a_multimodal_model_without_a_text_model_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    """By its class, before its weights are read."""
    from transformers import AutoConfig

    folder = tmp_path / "m"
    config = AutoConfig.for_model(kind, architectures=["WhateverForConditionalGeneration"])
    config.save_pretrained(folder)
    train_tokenizer().save_pretrained(folder)
    assert "no causal language model for WhateverForConditionalGeneration" in refusal(folder)


# What cannot be loaded


CONFIGURATIONS = {
    "bitsandbytes": ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "bitsandbytes"),
    "gptq": ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "pip install optimum"),
    "a missing package": ({"quantization_config": {"quant_method": "torchao", "quant_type": "int8"}}, "torchao"),
    "an overflow": ({"vocab_size": 10**30}, "Overflow"),
    "no memory": ({"vocab_size": 10**13}, "smaller model"),
    "a number type that is none": ({"dtype": "other"}, "has no attribute 'other'"),
    "a text for a number": ({"hidden_size": "64"}, "Field 'hidden_size' expected int, got str"),
    "no heads": ({"num_attention_heads": 0}, "modulo by zero"),
    "an unknown architecture": ({"model_type": "other"}, "model type `other`"),
    "code of its own": ({"model_type": "other", "auto_map": {"AutoConfig": "a.B"}}, "never run here"),
}


@pytest.mark.parametrize("case", CONFIGURATIONS)
def test_what_a_library_raises_is_told(case: str, tiny_llama: Path, tmp_path: Path) -> None:
    """Whatever it raises, it is unavailable, for a reason and with something to do."""
    changes, said = CONFIGURATIONS[case]
    folder = configured(shutil.copytree(tiny_llama, tmp_path / "m"), **changes)
    with pytest.raises(ModelUnavailable) as caught:
        loaded(folder)
    assert said in caught.value.message
    assert caught.value.message.startswith("m cannot be loaded: ")
    assert str(tmp_path) not in caught.value.message
    assert "frame #" not in caught.value.message


def test_loads_on_two_threads_do_not_meet(tiny_llama: Path, tmp_path: Path) -> None:
    """What is changed in the libraries for one load is not seen by another, and is undone after both."""
    import threading

    import gguf

    reader = gguf.GGUFReader
    folders = [tiny_llama, save_tiny_llama(tmp_path / "other", tie_word_embeddings=False)]
    threads = [threading.Thread(target=loaded, args=(folder,)) for folder in folders * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert gguf.GGUFReader is reader
