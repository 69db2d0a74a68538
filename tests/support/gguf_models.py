"""Writes transformers models as GGUF files, with the names and rearrangements of llama.cpp's converter.

The rules here are written after ``conversion/*.py`` there, independently of ``runtime.loading.gguf_families``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tests.support.models import add_key


def interleave(rows: Any, heads: int) -> Any:
    """Rearrange the rows of queries or keys so that pairs of values are rotated instead of halves of a head."""
    return rows.reshape(heads, 2, len(rows) // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def ungroup(rows: Any, groups: int, width: int) -> Any:
    """Rearrange a joint projection of groups (queries, key, value) into all queries, all keys, all values."""
    parts = rows.reshape(groups, -1, width, *rows.shape[1:])
    return np.concatenate([p.reshape(-1, *rows.shape[1:]) for p in (parts[:, :-2], parts[:, -2:-1], parts[:, -1:])])


class _Rules:
    """What the converter does to the tensors of one architecture."""

    permuted = frozenset({"llama", "smollm3", "granite", "granitemoe", "olmo"})
    shifted = frozenset({"gemma", "gemma2", "gemma3", "nemotron"})
    grouped = frozenset({"gptneox", "bloom", "falcon"})


def converted(architecture: str, name: str, values: Any, heads: int, kv_heads: int, hidden: int) -> Any:
    """Return a tensor as the converter writes it."""
    if architecture in _Rules.permuted and ("q_proj" in name or "k_proj" in name):
        return interleave(values, heads if "q_proj" in name else kv_heads)
    if architecture in _Rules.shifted and name.endswith("norm.weight"):
        return values + np.float32(1)
    if architecture in _Rules.grouped and "query_key_value" in name:
        return ungroup(values, kv_heads if architecture == "falcon" else heads, hidden // heads)
    if architecture == "gpt2" and name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
        return values.T
    if architecture in ("lfm2", "lfm2moe") and "conv.conv" in name:
        return values.squeeze(1)
    return values


def taken_apart(state: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield a model's tensors by the names of checkpoints, with gate and up projections of experts apart.

    Transformers 5 has all experts of a layer in two tensors, under names that checkpoints do not have.
    """
    for name, values in state.items():
        prefix, _, last = name.rpartition(".experts.")
        if last == "gate_up_proj":
            for part, half in zip(("gate_proj", "up_proj"), np.split(values, 2, axis=1), strict=True):
                yield f"{_of_experts(prefix)}.experts.{part}.weight", half
        elif last == "down_proj":
            yield f"{_of_experts(prefix)}.experts.down_proj.weight", values
        elif name.endswith("shared_mlp.input_linear.weight"):
            for part, half in zip(("gate_proj", "up_proj"), np.split(values, 2), strict=True):
                yield name.replace("shared_mlp.input_linear", f"mlp.shared_expert.{part}"), half
        elif name.endswith("moe_statics.e_score_correction_bias"):
            yield (
                name.replace("gate.moe_statics.e_score_correction_bias", "moe_statics.e_score_correction.bias"),
                values[0],
            )
        elif name.endswith(".expert_bias"):
            yield f"{name}.bias", values
        else:
            yield name.replace("block_sparse_moe.router.weight", "block_sparse_moe.router.layer.weight"), values


def _of_experts(prefix: str) -> str:
    """Return the name of the module with a layer's experts, as the converter's table of names has it."""
    return prefix.replace("block_sparse_moe", "mlp").replace("feed_forward", "mlp")


def save_gguf(
    file: Path,
    architecture: str,
    state: Mapping[str, Any],
    keys: Mapping[str, Any],
    tokenizer: Mapping[str, Any],
    *,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    more: Mapping[str, Any] | None = None,
) -> Path:
    """Write a model as a GGUF file.

    Args:
        file: the new file.
        architecture: llama.cpp's name of the model's architecture.
        state: the model's tensors, float32 arrays by transformers' names.
        keys: metadata without the prefix of the architecture; sizes are needed for the rearrangements.
        tokenizer: metadata with complete keys.
        kind: type of the matrices.
        more: further tensors by GGUF names.
    """
    writer = gguf.GGUFWriter(file, architecture)
    for key, value in keys.items():
        add_key(writer, f"{architecture}.{key}", value)
    for key, value in tokenizer.items():
        add_key(writer, key, value)
    heads, hidden = keys["attention.head_count"], keys["embedding_length"]
    kv_heads = keys.get("attention.head_count_kv", heads)
    (number,) = [key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture]
    names = gguf.get_tensor_name_map(number, keys["block_count"])
    for name, values in taken_apart(state):
        short = name.removeprefix("transformer.") if architecture == "bloom" else name
        new = names.get_name(short, try_suffixes=(".weight", ".bias"))
        if new is None:
            raise KeyError(f"{architecture} has no tensor for {name}")
        add(writer, new, converted(architecture, name, values, heads, np.max(kv_heads), hidden), kind)
    for name, values in (more or {}).items():
        add(writer, name, values, gguf.GGMLQuantizationType.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def add(writer: Any, name: str, values: Any, kind: gguf.GGMLQuantizationType) -> None:
    """Add a tensor; vectors, routers, and matrices whose width does not suit the type, are float32."""
    values = np.ascontiguousarray(values, np.float32)
    exact = kind == gguf.GGMLQuantizationType.F32 or values.ndim < 2 or "gate_inp" in name
    if exact or values.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
        writer.add_tensor(name, values)
    else:
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)


def random_blocks(kind: gguf.GGMLQuantizationType, rows: int, columns: int, seed: int = 0) -> Any:
    """Return random rows of a quantized type as bytes [rows, bytes of a row], with values of a weight's size.

    Args:
        kind: the type; ``gguf`` need not be able to quantize to it.
        rows: number of rows.
        columns: width of a row.
        seed: seed of the values.
    """
    values, size = gguf.GGML_QUANT_SIZES[kind]
    dice = np.random.default_rng(seed)
    blocks = dice.integers(0, 256, (rows * columns // values, size), np.uint8)
    for at in _FACTORS[kind.name]:
        factors = dice.uniform(0.5, 1.5, len(blocks)) * _SCALE / _LARGEST[kind.name]
        blocks[:, at : at + 2] = factors.astype("<f2").view(np.uint8).reshape(-1, 2)
    if kind.name in ("Q4_1", "Q5_1"):  # minima are added here, so they are negative
        blocks[:, 3] |= 128
    return blocks.reshape(rows, -1)


_SCALE = 0.2  # the largest value that a code stands for
# Positions of the float16 factors of blocks, and the largest product of a code and an integer scale.
_FACTORS = {
    **dict.fromkeys(("Q4_0", "Q5_0", "Q8_0", "IQ4_NL", "IQ4_XS"), (0,)),
    **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2)),
    **{"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,)},
}
_LARGEST = {"Q4_0": 8, "Q4_1": 15, "Q5_0": 16, "Q5_1": 31, "Q8_0": 128, "Q2_K": 45, "Q3_K": 128}
_LARGEST |= {"Q4_K": 945, "Q5_K": 1953, "Q6_K": 4096, "IQ4_NL": 127, "IQ4_XS": 4064}


MIXED_TYPES = (
    *("Q6_K", "Q4_K", "Q5_K", "Q3_K", "Q8_0", "Q4_0", "IQ4_XS", "Q2_K"),
    *("Q5_0", "F16", "Q4_1", "IQ4_NL", "BF16", "Q5_1", "F32"),
)
"""All types that are served as they are, in the order in which ``save_mixed`` gives them to matrices."""


def save_mixed(source: Path, file: Path, types: Iterable[str] = MIXED_TYPES) -> Path:
    """Copy a GGUF file with random matrices of many types; its routers are copied.

    Args:
        source: a file with float32 tensors.
        file: the copy.
        types: the types of its matrices in order, repeated if there are more matrices; F32 where a width does not suit.
    """
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(file, reader.fields["general.architecture"].contents())
    for key, field in reader.fields.items():
        if not key.startswith(("GGUF.", "general.architecture")):
            kind, *element = dict.fromkeys(field.types)
            writer.add_key_value(key, field.contents(), kind, element[0] if element else None)
    names = itertools.cycle(types)
    for number, tensor in enumerate(reader.tensors):
        values = tensor.data.reshape(tuple(reversed(tensor.shape.tolist())))
        if values.ndim < 2 or "gate_inp" in tensor.name:
            writer.add_tensor(tensor.name, values)
            continue
        kind = gguf.GGMLQuantizationType[next(names)]
        if values.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
            kind = gguf.GGMLQuantizationType.F32
        if kind.name in _FACTORS:
            *stack, columns = values.shape
            blocks = random_blocks(kind, math.prod(stack), columns, seed=number)
            writer.add_tensor(tensor.name, blocks.reshape(*stack, -1), raw_dtype=kind)
        else:
            random = np.random.default_rng(number).normal(0, 0.1, values.shape).astype(np.float32)
            writer.add_tensor(tensor.name, gguf.quants.quantize(random, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file
