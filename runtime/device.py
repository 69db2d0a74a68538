"""Selects the device and number type that a model runs on; measures and releases the process's memory there.

Devices have torch's names (``cpu``, ``cuda:0``, ``mps``). torch is imported only if a CUDA driver or an Arm Mac
indicates that there may be an accelerator. Without torch, as in the slim image, models run on compiled kernels only.
"""

from __future__ import annotations

import ctypes
import platform
import sys

from runtime.errors import ModelUnavailable
from runtime.host import cpu_flags, require_torch, torch_installed, trim_memory

_16_BIT_CPU_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})  # the last is Arm's name


def select_device(name: str) -> str:
    """Return the device to run on; ``auto`` selects CUDA if present, else MPS, else the CPU, as without torch.

    Args:
        name: auto, cpu, mps, cuda or cuda:N.

    Raises:
        ModelUnavailable: the named device is not present, or needs torch, which is not installed.
    """
    if name == "auto":
        return _accelerator() if (_may_have_cuda() or _may_have_mps()) and torch_installed() else "cpu"
    if name == "cpu":
        return name
    require_torch(f"DEVICE={name}")
    import torch

    kind, _, index = name.partition(":")
    present = (
        torch.backends.mps.is_available()
        if kind == "mps"
        else torch.cuda.is_available() and int(index or 0) < torch.cuda.device_count()
    )
    if not present:
        raise ModelUnavailable(f"DEVICE={name} is not present on this machine; set DEVICE=auto or cpu")
    return name if kind == "mps" else f"cuda:{index or 0}"


def _accelerator() -> str:
    """Return the accelerator that torch finds, or ``cpu``."""
    import torch

    if torch.cuda.is_available():
        return "cuda:0"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _may_have_cuda() -> bool:
    """Ask the CUDA driver for devices, which takes milliseconds where importing torch takes seconds."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        count = ctypes.c_int()
        return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
    except (OSError, AttributeError):  # no driver
        return False


def _may_have_mps() -> bool:
    """Return whether this is an Arm Mac."""
    return sys.platform == "darwin" and platform.machine() == "arm64"


def select_dtype(name: str, device: str, *, int8: bool = False) -> str:
    """Return the weights' number type; ``auto`` selects 8 or 16 bits only where the device computes fast with them.

    Args:
        name: a value of ``DTYPE``; a named type is returned unless the device cannot run it.
        device: the device, from ``select_device``.
        int8: whether the engine has kernels for 8-bit weights on this device.

    Raises:
        ModelUnavailable: float16 on a CPU, where its kernels are slower than float32's and partly missing.
    """
    if name == "float16" and device == "cpu":
        raise ModelUnavailable("DTYPE=float16 does not run well on a CPU; set DTYPE=auto, bfloat16 or float32")
    if name != "auto":
        return name
    if device.startswith("cuda"):
        import torch

        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    if device == "mps":
        return "float16"
    if int8:
        return "int8"
    return "float32" if _16_BIT_CPU_FLAGS.isdisjoint(cpu_flags()) else "bfloat16"


def release_memory(device: object) -> None:
    """Return freed memory to the system: Python's, glibc's arenas and, on CUDA, torch's cache.

    Args:
        device: a ``torch.device`` or its name.
    """
    if str(device).startswith("cuda"):
        import torch

        torch.cuda.empty_cache()
    trim_memory()
