"""ctypes bindings of the compiled kernels: loads the library for this processor and mirrors its structures."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_char_p, c_float, c_int32, c_uint64, c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from runtime.engine.native.build import levels, path_of
from runtime.host import cpu_flags

MAX_LOGPROBS = 32
INTERRUPTED = 14
"""``kInterrupted`` of check.h."""
_NO_MEMORY = 1  # ``kNoMemory`` of check.h


class Tensor(Structure):
    """Pointers to a matrix or vector, its int8 scales and its bias, with their sizes, and the type of a matrix."""

    _fields_ = (
        *((name, c_void_p) for name in ("data", "scales", "bias")),
        *((name, c_uint64) for name in ("data_bytes", "scale_count", "bias_count")),
        ("kind", c_int32),
    )


class RotaryTable(Structure):
    """Rotary position embeddings of some layers, the counterpart of ``Rotation`` in layout.h."""

    _fields_ = (
        ("frequencies", c_void_p),
        ("long_frequencies", c_void_p),
        ("count", c_uint64),
        ("factor", c_float),
    )


class Layer(Structure):
    """One layer's properties and tensors."""

    _fields_ = (
        *((name, c_int32) for name in ("kind", "window", "rotation")),
        *((name, Tensor) for name in ("attention_norm", "attention_post_norm", "mlp_norm", "mlp_post_norm")),
        ("qkv", Tensor * 3),
        *((name, Tensor) for name in ("q_norm", "k_norm", "attention_out", "convolution")),
        ("intermediate", c_int32),
        ("up", Tensor * 2),
        *((name, Tensor) for name in ("down", "router", "router_correction")),
        ("experts_up", Tensor * 2),
        ("experts_down", Tensor),
    )


class Config(Structure):
    """A decoder's configuration and weights, the counterpart of ``Config`` in layout.h."""

    _fields_ = (
        *((name, c_int32) for name in ("norm", "qk_norm", "activation")),
        *((name, c_int32) for name in ("kv_type", "gated", "parallel", "shared_norm")),
        *((name, c_int32) for name in ("bidirectional", "transient", "norm_after_sum")),
        *((name, c_int32) for name in ("layers", "hidden", "heads", "kv_heads", "head_dim")),
        *((name, c_int32) for name in ("vocabulary", "context", "convolution_width")),
        *((name, c_int32) for name in ("token_types", "relative_range")),
        *((name, c_int32) for name in ("experts", "experts_per_token", "experts_intermediate")),
        *((name, c_int32) for name in ("router_scores", "normalized", "shared_gate")),
        *((name, c_int32) for name in ("threads", "max_tokens", "blocks", "rotation_count")),
        *((name, c_float) for name in ("epsilon", "attention_scale", "attention_softcap", "embedding_scale")),
        *((name, c_float) for name in ("residual_scale", "logit_scale", "logit_softcap", "experts_scale")),
        ("alibi_slopes", c_void_p),
        ("slope_count", c_uint64),
        ("positions", c_void_p),
        ("position_count", c_uint64),
        ("types", c_void_p),
        ("type_count", c_uint64),
        ("relative_bias", c_void_p),
        ("relative_count", c_uint64),
        ("rotations", c_void_p),
        *((name, Tensor) for name in ("embed", "embed_norm", "final_norm", "head")),
        ("layer", c_void_p),
    )


class Step(Structure):
    """Input and output of one step, the counterpart of ``Step`` in layout.h."""

    _fields_ = (
        *((name, c_int32) for name in ("sequences", "tokens", "outputs", "block_count")),
        *((n, c_void_p) for n in ("ids", "starts", "at", "long_texts", "tables", "blocks", "output_tokens")),
        *((name, c_void_p) for name in ("choices", "chosen", "logits", "types", "states", "interrupt")),
        *((name, c_int32) for name in ("first_layer", "last_layer", "resume")),
    )


CHOICE = np.dtype(
    [
        ("u", np.float64),
        *((name, np.uint64) for name in ("bias_ids", "bias", "seen_ids", "counted_ids", "counts", "banned", "mask")),
        *((name, np.float32) for name in ("temperature", "top_p", "min_p")),
        *((name, np.float32) for name in ("repetition_penalty", "presence_penalty", "frequency_penalty")),
        *((name, np.int32) for name in ("top_k", "logprobs", "biases", "seen", "counted", "bans", "mask_words")),
    ],
    align=True,
)
CHOSEN = np.dtype(
    [
        *((name, np.int32) for name in ("id", "failed", "tops")),
        ("logprob", np.float32),
        ("top_ids", np.int32, MAX_LOGPROBS),
        ("top_logprobs", np.float32, MAX_LOGPROBS),
    ],
    align=True,
)


@dataclass(frozen=True, slots=True)
class Kernels:
    """A loaded library and the name of the instruction set level that it was compiled for."""

    level: str
    functions: ctypes.CDLL


@cache
def usable(folder: Path | None = None) -> tuple[Kernels, ...]:
    """Load the compiled libraries that this processor can run, best first.

    Args:
        folder: the libraries' folder; by default the one next to the sources.

    Raises:
        RuntimeError: a library's structures have another memory layout than the ones here.
    """
    flags = cpu_flags()
    paths = {level.name: path_of(level, folder) for level in levels() if level.flags <= flags}
    found = (Kernels(name, _opened(ctypes.CDLL(str(path)))) for name, path in paths.items() if path.exists())
    return tuple(kernels for kernels in found if kernels.functions.warmstart_permitted())


def check(functions: ctypes.CDLL, status: int) -> None:
    """Raise an exception if a library function returned an error status.

    Args:
        functions: the library.
        status: the returned status; 0 is success.

    Raises:
        MemoryError: an allocation failed.
        RuntimeError: an argument was rejected; the message says which kind.
    """
    if status == _NO_MEMORY:
        raise MemoryError("no memory for the kernels")
    if status:
        raise RuntimeError(f"the kernels refuse this: {functions.warmstart_describe(status).decode()}")


def layout() -> list[int]:
    """Return each shared structure's size and field offsets in bytes, in the order of ``kLayout`` in layout.h."""
    shared = [np.dtype(structure) for structure in (Tensor, RotaryTable, Layer, Config)]
    structures = [*shared, CHOICE, CHOSEN, np.dtype(Step)]
    return [number for dtype in structures for number in (dtype.itemsize, *_offsets(dtype))]


def _offsets(dtype: np.dtype[Any]) -> list[int]:
    return [field[1] for field in (dtype.fields or {}).values()]


def _opened(library: ctypes.CDLL) -> ctypes.CDLL:
    for name, result, arguments in (
        ("layout", POINTER(c_int32), [POINTER(c_int32)]),
        ("permitted", c_int32, []),
        ("describe", c_char_p, [c_int32]),
        ("open", c_int32, [POINTER(Config), POINTER(c_void_p)]),
        ("step", c_int32, [c_void_p, POINTER(Step)]),
        ("copy_block", c_int32, [c_void_p, c_int32, c_int32]),
        ("read", c_int32, [c_void_p, c_void_p, c_uint64, POINTER(c_float)]),
        ("close", None, [c_void_p]),
    ):
        function = getattr(library, f"warmstart_{name}")
        function.restype, function.argtypes = result, arguments
    count = c_int32()
    theirs = library.warmstart_layout(ctypes.byref(count))[: count.value]
    if theirs != layout():
        raise RuntimeError(f"the native library lays its structures out as {theirs}, not {layout()}")
    return library
