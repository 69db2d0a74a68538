"""Writes a GGUF file in Q8_0 with random weights in the shape of a well-known model, to compare servers with.

``python -m loadtests.random_gguf Qwen3-0.6B qwen3.gguf``: any server can load the file. Its tokenizer is that of the
embedded model, filled up with unused tokens to the model's vocabulary, so every server gets the same prompts.
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

from loadtests.model_shapes import SHAPES
from loadtests.peers.models import embedded_gguf
from runtime.model.gguf_header import read_header

ARCHITECTURES = ("llama", "qwen2", "qwen3")
_BLOCK = 32  # values per block of Q8_0
_SPREAD = 0.02  # standard deviation of the weights


def write(shape: Mapping[str, Any], file: Path) -> None:
    """Write a file.

    Args:
        shape: the model's configuration, of an architecture in ``ARCHITECTURES``.
        file: the file to write.
    """
    architecture = shape["model_type"]
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
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    _add_tokenizer(writer, shape["vocab_size"])
    dice = np.random.default_rng(1)
    tensors = list(_tensors(shape, architecture, head_dim))
    for name, size in tensors:
        kind = gguf.GGMLQuantizationType.Q8_0 if len(size) == 2 else gguf.GGMLQuantizationType.F32
        stored = (*size[:-1], size[-1] // _BLOCK * 34) if len(size) == 2 else size
        dtype = np.dtype(np.uint8 if len(size) == 2 else np.float32)
        writer.add_tensor_info(name, stored, dtype, int(np.prod(stored)) * dtype.itemsize, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, size in tensors:
        writer.write_tensor_data(_matrix(dice, *size) if len(size) == 2 else _vector(name, size))
    writer.close()


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
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    queries, keys = shape["num_attention_heads"] * head_dim, shape["num_key_value_heads"] * head_dim
    yield "token_embd.weight", (shape["vocab_size"], hidden)
    for i in range(shape["num_hidden_layers"]):
        yield f"blk.{i}.attn_norm.weight", (hidden,)
        for name, width in (("q", queries), ("k", keys), ("v", keys)):
            yield f"blk.{i}.attn_{name}.weight", (width, hidden)
            if architecture == "qwen2":
                yield f"blk.{i}.attn_{name}.bias", (width,)
            if architecture == "qwen3" and name != "v":
                yield f"blk.{i}.attn_{name}_norm.weight", (head_dim,)
        yield f"blk.{i}.attn_output.weight", (hidden, queries)
        yield f"blk.{i}.ffn_norm.weight", (hidden,)
        for name in ("gate", "up"):
            yield f"blk.{i}.ffn_{name}.weight", (inner, hidden)
        yield f"blk.{i}.ffn_down.weight", (hidden, inner)
    yield "output_norm.weight", (hidden,)


def _matrix(dice: np.random.Generator, rows: int, columns: int) -> NDArray[np.uint8]:
    """Return a random matrix as blocks of Q8_0: a float16 scale and 32 int8 values each."""
    blocks = np.empty((rows, columns // _BLOCK, 34), np.uint8)
    values = dice.integers(-127, 128, (rows, columns // _BLOCK, _BLOCK), np.int8)
    blocks[..., 2:] = values.view(np.uint8)
    scale = _SPREAD / 73.3  # the standard deviation of the integers
    blocks[..., :2] = np.array([scale], np.float16).view(np.uint8)
    return blocks.reshape(rows, -1)


def _vector(name: str, size: tuple[int, ...]) -> NDArray[np.float32]:
    return np.full(size, 0.0 if name.endswith(".bias") else 1.0, np.float32)


def main() -> None:
    """Write the file that the command line asks for."""
    names = [name for name, shape in SHAPES.items() if shape["model_type"] in ARCHITECTURES]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=names)
    parser.add_argument("file", type=Path)
    arguments = parser.parse_args()
    write(SHAPES[arguments.shape], arguments.file)


if __name__ == "__main__":
    main()
