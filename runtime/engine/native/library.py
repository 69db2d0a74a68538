"""The compiled kernels as Python sees them: finding the library for this processor, and the structures it shares."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_float, c_int32, c_uint64, c_void_p
from dataclasses import dataclass
from functools import cache

import numpy as np

from runtime.device import cpu_flags
from runtime.engine.native.build import levels, path_of

MOST_LOGPROBS = 32


class Tensor(Structure):
    """Addresses of a matrix or vector, its scales and its bias."""

    _fields_ = (("data", c_void_p), ("scales", c_void_p), ("bias", c_void_p))


class Layer(Structure):
    """One block's tensors."""

    _fields_ = tuple((name, Tensor) for name in ("attention_norm", "qkv", "attention_out", "mlp_norm", "up", "down"))


class Config(Structure):
    """What a decoder is made of; see decoder.cpp."""

    _fields_ = (
        *((name, c_int32) for name in ("family", "activation", "kind", "half_kv")),
        *((n, c_int32) for n in ("layers", "hidden", "intermediate", "heads", "kv_heads", "head_dim", "vocabulary")),
        *((name, c_int32) for name in ("threads", "max_tokens", "blocks")),
        ("epsilon", c_float),
        ("rope_factor", c_float),
        ("inverse_frequencies", c_void_p),
        ("positions", c_void_p),
        ("embed", Tensor),
        ("final_norm", Tensor),
        ("head", Tensor),
        ("layer", POINTER(Layer)),
    )


class Step(Structure):
    """One step's input and output; see decoder.cpp."""

    _fields_ = (
        *((name, c_int32) for name in ("sequences", "tokens", "outputs")),
        *((n, c_void_p) for n in ("ids", "starts", "at", "tables", "blocks", "output_tokens")),
        *((name, c_void_p) for name in ("choices", "chosen", "logits")),
    )


CHOICE = np.dtype(
    [
        ("u", np.float64),
        *((name, np.uint64) for name in ("bias_ids", "bias", "seen_ids", "counted_ids", "counts", "banned")),
        *((name, np.float32) for name in ("temperature", "top_p", "min_p")),
        *((name, np.float32) for name in ("repetition_penalty", "presence_penalty", "frequency_penalty")),
        *((name, np.int32) for name in ("top_k", "logprobs", "biases", "seen", "counted", "bans")),
    ],
    align=True,
)
CHOSEN = np.dtype(
    [
        *((name, np.int32) for name in ("id", "failed", "tops")),
        ("logprob", np.float32),
        ("top_ids", np.int32, MOST_LOGPROBS),
        ("top_logprobs", np.float32, MOST_LOGPROBS),
    ],
    align=True,
)


@dataclass(frozen=True, slots=True)
class Kernels:
    """A loaded library and the instruction set it is for."""

    level: str
    functions: ctypes.CDLL


@cache
def usable() -> tuple[Kernels, ...]:
    """The libraries that were built and that this processor can run, best first.

    Raises:
        RuntimeError: the structures of one are not those above.
    """
    flags = cpu_flags()
    present = [level for level in levels() if level.flags <= flags and path_of(level).exists()]
    return tuple(Kernels(level.name, _opened(ctypes.CDLL(str(path_of(level))))) for level in present)


def _opened(library: ctypes.CDLL) -> ctypes.CDLL:
    sizes = (c_int32 * 5)()
    library.warmstart_layout.argtypes = [c_void_p]
    library.warmstart_layout(sizes)
    ours = [ctypes.sizeof(Config), ctypes.sizeof(Layer), ctypes.sizeof(Step), CHOICE.itemsize, CHOSEN.itemsize]
    if list(sizes) != ours:
        raise RuntimeError(f"the native library's structures are {list(sizes)} bytes, not {ours}")
    for name, result, arguments in (
        ("open", c_void_p, [c_void_p]),
        ("step", c_int32, [c_void_p, c_void_p]),
        ("copy_block", None, [c_void_p, c_int32, c_int32]),
        ("read", c_float, [c_void_p, c_void_p, c_uint64]),
        ("close", None, [c_void_p]),
    ):
        function = getattr(library, f"warmstart_{name}")
        function.restype, function.argtypes = result, arguments
    return library
