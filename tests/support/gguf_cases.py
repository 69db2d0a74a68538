"""Models of families and how llama.cpp's converter writes them, for tests that compare GGUF files with checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from runtime.loading.convert import convert
from runtime.loading.gguf_families import read_gguf
from runtime.loading.gguf_source import open_gguf
from runtime.loading.tensor_source import StateDictSource
from runtime.model.config import DecoderConfig
from runtime.model.families import FAMILIES, read_config
from tests.support.gguf_models import save_gguf

SHAPE: dict[str, Any] = {
    "vocab_size": 64,
    "max_position_embeddings": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
RMS, LAYER = "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"
Keys = dict[str, Any]


@dataclass
class Case:
    """A model of a family, and how the converter writes its configuration.

    Args:
        architecture: llama.cpp's name.
        family: transformers' ``model_type``.
        options: changes to ``SHAPE``; None removes an option.
        keys: metadata besides the sizes.
    """

    architecture: str
    family: str
    options: dict[str, Any] = field(default_factory=dict)
    keys: Keys = field(default_factory=dict)


def sizes(decoder: DecoderConfig) -> Keys:
    """The keys that all converters write."""
    return {
        "block_count": len(decoder.layers),
        "context_length": decoder.context_length,
        "embedding_length": decoder.hidden,
        "feed_forward_length": decoder.intermediate,
        "attention.head_count": decoder.heads,
        "attention.head_count_kv": decoder.kv_heads,
    }


def model_of(case: Case) -> Any:
    """A model with random numbers in all of its tensors."""
    torch.manual_seed(11)
    options = {
        name: value for name, value in (SHAPE | case.options).items() if value is not None or name == "sliding_window"
    }
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(case.family, **options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
        for name, buffer in model.named_buffers():
            if name.endswith("expert_bias"):
                buffer.normal_(0, 0.3)
    return model.eval()


def saved(case: Case, file: Path, tokenizer: Keys | None = None) -> tuple[Any, DecoderConfig, list[Any]]:
    """Write a model as a GGUF file, and return it with the decoder and the weights of its checkpoint."""
    model = model_of(case)
    source = StateDictSource(model.state_dict())
    decoder, layout = read_config(model.config.to_dict())
    weights = convert(decoder, layout, source)
    state = {name: source.read(name) for name in source.names() if "rotary_emb" not in name}
    if decoder.tied:
        state.pop("lm_head.weight", None)
    save_gguf(file, case.architecture, state, sizes(decoder) | case.keys, tokenizer or {})
    return model, decoder, weights


def check_file(case: Case, file: Path) -> None:
    """Write a case as a file, and demand its checkpoint's decoder and weights from it."""
    _, expected, weights = saved(case, file)
    header, source = open_gguf(file)
    decoder, layout, architecture, _ = read_gguf(header)
    assert decoder == expected
    assert architecture == FAMILIES[decoder_family(case)].architecture
    actual = {weight.name: weight for weight in convert(decoder, layout, source)}
    assert actual.keys() == {weight.name for weight in weights}
    for weight in weights:
        layer, _, part = weight.name.partition(".")
        compared = [actual[weight.name].read(), weight.read()]
        if part == "qkv" and decoder.layers[int(layer)].rotation is None:
            # Without a rotation, the order of a head's values does not matter, and the converter's stays.
            compared = [scores_of(values, decoder) for values in compared]
            assert np.allclose(*compared, atol=1e-4), weight.name
        else:
            assert np.array_equal(*compared), weight.name


def scores_of(qkv: Any, decoder: DecoderConfig) -> Any:
    """The product of each query head's rows with its key head's, which is all that attention scores depend on."""
    heads, width = decoder.heads, decoder.padded_head_dim
    q = qkv[: heads * width].reshape(decoder.kv_heads, -1, width, decoder.hidden)
    k = qkv[heads * width : (heads + decoder.kv_heads) * width].reshape(decoder.kv_heads, width, decoder.hidden)
    return np.einsum("kgdi,kdj->kgij", q, k)


def decoder_family(case: Case) -> str:
    """The family that a file is read as; Mistral's are Llama's."""
    return "llama" if case.family == "mistral" else case.family
