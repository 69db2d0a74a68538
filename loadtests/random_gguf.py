"""Writes a GGUF file with random weights in the shape of a well-known model, to compare servers with.

``python -m loadtests.random_gguf Qwen3-0.6B qwen3.gguf [--types Q4_K_M] [--vocabulary 49152] [--layers 12]``: any
server can load the file. Its tokenizer is that of the embedded model, filled up with unused tokens to the model's
vocabulary, so every server gets the same prompts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from loadtests.peers.models import embedded_gguf
from loadtests.shapes import SHAPES, with_layers
from runtime.model.gguf_header import read_header

ARCHITECTURES = {  # llama.cpp's names by ``model_type``
    **{name: name for name in ("llama", "qwen2", "qwen3", "olmoe", "granitemoe")},
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
}
TYPES = ("Q8_0", "Q4_K_M")
_SPREAD = 0.02  # standard deviation of the weights


def write(shape: Mapping[str, Any], file: Path, types: str = "Q8_0") -> None:
    """Write a file.

    Args:
        shape: the model's configuration, of an architecture in ``ARCHITECTURES``.
        file: the file to write.
        types: the types of its matrices, one of ``TYPES``.
    """
    architecture = ARCHITECTURES[shape["model_type"]]
    writer = gguf.GGUFWriter(file, architecture)
    heads, hidden = shape["num_attention_heads"], shape["hidden_size"]
    head_dim = shape.get("head_dim", hidden // heads)
    writer.add_context_length(shape["max_position_embeddings"])
    writer.add_embedding_length(hidden)
    writer.add_block_count(shape["num_hidden_layers"])
    writer.add_feed_forward_length(shape["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(shape["num_key_value_heads"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    _add_experts(writer, shape)
    for name, add in (
        ("attention_multiplier", writer.add_attention_scale),
        ("embedding_multiplier", writer.add_embedding_scale),
        ("residual_multiplier", writer.add_residual_scale),
        ("logits_scaling", writer.add_logit_scale),
    ):
        if name in shape:
            add(shape[name])
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{types}"])
    _add_tokenizer(writer, shape["vocab_size"])
    dice = np.random.default_rng(1)
    tensors = list(_tensors(shape, architecture, head_dim))
    tied = shape.get("tie_word_embeddings", False)
    kinds = {name: _kind(name, size, types, shape["num_hidden_layers"], tied) for name, size in tensors}
    for name, size in tensors:
        kind = gguf.GGMLQuantizationType[kinds[name]]
        values, block = gguf.GGML_QUANT_SIZES[kind]
        exact = kinds[name] == "F32"
        stored = size if exact else (*size[:-1], size[-1] // values * block)
        dtype = np.dtype(np.float32 if exact else np.uint8)
        writer.add_tensor_info(name, stored, dtype, int(np.prod(stored)) * dtype.itemsize, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, size in tensors:
        exact = kinds[name] == "F32"
        writer.write_tensor_data(_numbers(dice, name, size) if exact else _matrix(dice, size, kinds[name]))
    writer.close()


def _kind(name: str, size: tuple[int, ...], types: str, layers: int, tied: bool) -> str:
    """Return a tensor's type: for Q4_K_M the one that llama.cpp's ``llama_tensor_get_type`` gives.

    A stack of experts has the type that a layer's one matrix would have; routers are not quantized.
    """
    if len(size) == 1 or name.endswith("ffn_gate_inp.weight"):
        return "F32"
    if types == "Q8_0":
        return "Q8_0"
    more = name == ("token_embd.weight" if tied else "output.weight")
    if name.endswith("attn_v.weight") or ".ffn_down" in name:
        i = int(name.split(".")[1])
        more = i < layers // 8 or i >= 7 * layers // 8 or (i - layers // 8) % 3 == 2
    if size[-1] % 256 == 0:
        return "Q6_K" if more else "Q4_K"
    return "Q8_0" if more else "Q5_0"


def _experts(shape: Mapping[str, Any]) -> tuple[int, int, int]:
    """Return the number of experts, the width of one, and that of the shared expert; zeros for what there is not."""
    count = shape.get("num_experts", shape.get("num_local_experts", 0))
    width = shape.get("moe_intermediate_size", shape["intermediate_size"])
    return count, width, shape.get("shared_expert_intermediate_size", 0)


def _add_experts(writer: gguf.GGUFWriter, shape: Mapping[str, Any]) -> None:
    """Add the metadata of a mixture of experts, if the model has one."""
    count, width, shared = _experts(shape)
    if count:
        writer.add_expert_count(count)
        writer.add_expert_used_count(shape["num_experts_per_tok"])
    if "moe_intermediate_size" in shape:
        writer.add_expert_feed_forward_length(width)
    if shared:
        writer.add_expert_shared_feed_forward_length(shared)


def _add_tokenizer(writer: gguf.GGUFWriter, vocabulary: int) -> None:
    """Copy the embedded model's tokenizer and chat template, and add unused tokens."""
    metadata = read_header(embedded_gguf(Path(sys.executable))).metadata
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"].tolist()
    missing = vocabulary - len(tokens)
    writer.add_tokenizer_model(metadata["tokenizer.ggml.model"])
    writer.add_tokenizer_pre(metadata["tokenizer.ggml.pre"])
    writer.add_token_list([*tokens, *(f"[unused{i}]" for i in range(missing))])
    writer.add_token_types([*kinds, *[int(gguf.TokenType.UNUSED)] * missing])
    writer.add_token_merges(metadata["tokenizer.ggml.merges"])
    writer.add_bos_token_id(metadata["tokenizer.ggml.bos_token_id"])
    writer.add_eos_token_id(metadata["tokenizer.ggml.eos_token_id"])
    writer.add_add_bos_token(False)
    writer.add_chat_template(metadata["tokenizer.chat_template"])


def _tensors(shape: Mapping[str, Any], architecture: str, head_dim: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the names and shapes of a model's tensors."""
    hidden = shape["hidden_size"]
    queries, keys = shape["num_attention_heads"] * head_dim, shape["num_key_value_heads"] * head_dim
    yield "token_embd.weight", (shape["vocab_size"], hidden)
    for i in range(shape["num_hidden_layers"]):
        yield f"blk.{i}.attn_norm.weight", (hidden,)
        for name, width in (("q", queries), ("k", keys), ("v", keys)):
            yield f"blk.{i}.attn_{name}.weight", (width, hidden)
            if architecture in ("qwen2", "qwen2moe"):
                yield f"blk.{i}.attn_{name}.bias", (width,)
            if architecture in ("qwen3", "qwen3moe") and name != "v":
                yield f"blk.{i}.attn_{name}_norm.weight", (head_dim,)
            if architecture == "olmoe" and name != "v":
                yield f"blk.{i}.attn_{name}_norm.weight", (width,)
        yield f"blk.{i}.attn_output.weight", (hidden, queries)
        yield f"blk.{i}.ffn_norm.weight", (hidden,)
        yield from _mlp(shape, f"blk.{i}.ffn_")
    yield "output_norm.weight", (hidden,)
    if not shape.get("tie_word_embeddings", False):
        yield "output.weight", (shape["vocab_size"], hidden)


def _mlp(shape: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the names and shapes of a layer's MLP, or of its experts and router."""
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    count, width, shared = _experts(shape)
    if count:
        yield f"{prefix}gate_inp.weight", (count, hidden)
        for name in ("gate", "up"):
            yield f"{prefix}{name}_exps.weight", (count, width, hidden)
        yield f"{prefix}down_exps.weight", (count, hidden, width)
    if shared:
        yield f"{prefix}gate_inp_shexp.weight", (hidden,)
    if shared or not count:
        suffix, inner = ("_shexp", shared) if shared else ("", inner)
        for name in ("gate", "up"):
            yield f"{prefix}{name}{suffix}.weight", (inner, hidden)
        yield f"{prefix}down{suffix}.weight", (hidden, inner)


def _matrix(dice: np.random.Generator, size: tuple[int, ...], kind: str) -> NDArray[np.uint8]:
    """Return a random matrix, or a stack of them, as blocks of a type, with random codes and one scale."""
    values, block = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    blocks = dice.integers(0, 256, (*size[:-1], size[-1] // values, block), np.uint8)

    def half(at: int, number: float) -> None:
        blocks[..., at : at + 2] = np.array([number], np.float16).view(np.uint8)

    # Each scale is the spread divided by the standard deviation of the codes; those of sub-blocks are 32.
    if kind == "Q8_0":
        half(0, _SPREAD / 73.9)
    elif kind == "Q5_0":
        half(0, _SPREAD / 9.2)
    elif kind == "Q4_K":
        scale = _SPREAD / 4.6 / 32
        half(0, scale)
        half(2, 7.5 * scale)
        blocks[..., 4:12], blocks[..., 12:16] = 32 | 2 << 6, 0  # 6 bits each: the upper ones of four share bytes
    else:
        blocks[..., 192:208] = 32
        half(208, _SPREAD / 18.5 / 32)
    return blocks.reshape(*size[:-1], -1)


def _numbers(dice: np.random.Generator, name: str, size: tuple[int, ...]) -> NDArray[np.float32]:
    """Return a tensor that is not quantized: a router, a norm or a bias."""
    if "gate_inp" in name:
        return dice.normal(0, _SPREAD, size).astype(np.float32)
    return np.full(size, 0.0 if name.endswith(".bias") else 1.0, np.float32)


def main() -> None:
    """Write the file that the command line asks for."""
    names = [name for name, shape in SHAPES.items() if shape["model_type"] in ARCHITECTURES]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=names)
    parser.add_argument("file", type=Path)
    parser.add_argument("--types", choices=TYPES, default="Q8_0")
    parser.add_argument("--vocabulary", type=int, help="number of tokens, in place of the shape's own")
    parser.add_argument("--layers", type=int, help="number of layers, in place of the shape's own")
    arguments = parser.parse_args()
    try:
        shape = with_layers(SHAPES[arguments.shape], arguments.layers)
    except ValueError as error:
        parser.error(str(error))
    vocabulary = arguments.vocabulary or shape["vocab_size"]
    least = len(read_header(embedded_gguf(Path(sys.executable))).metadata["tokenizer.ggml.tokens"])
    if vocabulary < least:
        parser.error(f"--vocabulary is {vocabulary}, but the tokenizer has {least} tokens")
    write({**shape, "vocab_size": vocabulary}, arguments.file, arguments.types)


if __name__ == "__main__":
    main()
