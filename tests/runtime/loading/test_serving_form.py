"""A checkpoint's serving form, read from its files alone, is the one that transformers gives."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from runtime.errors import ModelUnavailable
from runtime.loading.checkpoint import form_through_transformers
from runtime.loading.serving_form import serving_form
from runtime.model.catalogue import ModelSpec
from runtime.model.config import UnsupportedDecoder
from tests.support.models import save_tiny_llama


def quiet(stage: str, share: float | None) -> None:
    """Report no progress."""


def spec_of(folder: Path) -> ModelSpec:
    return ModelSpec("local", "folder", str(folder))


def form_of(folder: Path, read: Callable[..., Any] = serving_form) -> Any:
    return read(spec_of(folder), folder, "int8", quiet)


@pytest.mark.parametrize("model", ["tiny_llama", "tiny_gpt2"])
@pytest.mark.parametrize("shard", ["5GB", "100KB"])
def test_it_is_the_one_that_transformers_gives(
    model: str, shard: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """The same properties, tokens and weights, from one file or several."""
    folder = tmp_path / "model"
    original = request.getfixturevalue(model)
    AutoModelForCausalLM.from_pretrained(original).save_pretrained(folder, max_shard_size=shard)
    assert (len(list(folder.glob("*.safetensors"))) > 1) == (shard != "5GB")
    for file in original.glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    facts, tokenizer, weights = form_of(folder)
    expected, its_tokenizer, its_weights = form_of(folder, form_through_transformers)
    assert replace(facts, decoder=None) == replace(expected, decoder=None)  # type: ignore[arg-type]
    assert facts.decoder == expected.decoder
    assert tokenizer.encode("Permission is hereby granted<|im_end|>") == its_tokenizer.encode(
        "Permission is hereby granted<|im_end|>"
    )
    assert (tokenizer.chat_template, tokenizer.special_tokens) == (
        its_tokenizer.chat_template,
        its_tokenizer.special_tokens,
    )
    assert [(weight.name, weight.shape) for weight in weights] == [(w.name, w.shape) for w in its_weights]
    assert all(np.array_equal(a.read(), b.read()) for a, b in zip(weights, its_weights, strict=True))


def test_no_torch_is_imported(tiny_llama: Path) -> None:
    """Between the files and the weights."""
    code = (
        "import sys; from pathlib import Path; from runtime.loading.serving_form import serving_form;"
        "from runtime.model.catalogue import ModelSpec; folder = Path(sys.argv[1]);"
        "form = serving_form(ModelSpec('local', 'folder', str(folder)), folder, 'int8', lambda stage, share: None);"
        "assert sum(weight.read().size for weight in form[2]);"
        "assert not {'torch', 'transformers', 'safetensors'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code, str(tiny_llama)], check=True)


def test_pickled_weights_go_through_transformers(tiny_llama: Path, tmp_path: Path) -> None:
    """With the same result."""
    for file in tiny_llama.iterdir():
        if file.suffix == ".safetensors":
            torch.save(load_file(file), tmp_path / "pytorch_model.bin")
        else:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = {weight.name: weight.read() for weight in form_of(tmp_path)[2]}
    expected = {weight.name: weight.read() for weight in form_of(tiny_llama)[2]}
    assert weights.keys() == expected.keys()
    assert all(np.array_equal(weights[name], expected[name]) for name in weights)


def copied(model: Path, folder: Path) -> Path:
    for file in model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def without_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors")


def in_eight_bits(folder: Path) -> None:
    tensors = {name: tensor.to(torch.int8) for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors")


def without_a_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut, "local cannot be loaded: model.safetensors is damaged"),
        (without_a_tensor, "model.layers.1.mlp.up_proj.weight missing"),
        (in_eight_bits, "is stored as I8, which is not a number type of weights"),
        (without_a_shard, "model-00002-of-00002.safetensors missing"),
        (lambda folder: (folder / "config.json").write_text("{"), "local cannot be loaded"),
        (lambda folder: (folder / "config.json").write_text("[]"), "local cannot be loaded"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "local cannot be loaded"),
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), "LoRA adapter among its files"),
    ],
)
def test_damaged_checkpoints_are_refused(
    damage: Callable[[Path], object], said: str, tiny_llama: Path, tmp_path: Path
) -> None:
    """With an error that names what is wrong."""
    damage(copied(tiny_llama, tmp_path))
    with pytest.raises(ModelUnavailable) as caught:
        form_of(tmp_path)
    assert said in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_a_model_that_is_not_described_is_left_to_the_reference_engine(tmp_path: Path) -> None:
    """By the error that selects it."""
    folder = save_tiny_llama(tmp_path)
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_act": "quick_gelu"}))
    with pytest.raises(UnsupportedDecoder, match="quick_gelu"):
        form_of(folder)
