"""Which device a model runs on, in which number type, with how many threads."""

from __future__ import annotations

import ctypes
import gc
import os
from pathlib import Path

import torch

from runtime.errors import ModelUnavailable

_16_BIT_CPU_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})  # the last is how Arm names it


def select_device(wanted: str) -> torch.device:
    """``auto``: CUDA when present, else MPS, else CPU.

    Raises:
        ModelUnavailable: a device was named that is not here.
    """
    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", 0)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    device = torch.device(wanted)
    present = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }[device.type]
    if not present:
        raise ModelUnavailable(f"DEVICE={wanted} is not present on this machine; set DEVICE=auto or cpu")
    return device


def select_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """16 bits only where the device is fast at them; a named type is obeyed where the device can run it at all.

    Raises:
        ModelUnavailable: float16 on a CPU, whose kernels for it are slower than float32's and in part missing.
    """
    if wanted != "auto":
        if wanted == "float16" and device.type == "cpu":
            raise ModelUnavailable("DTYPE=float16 does not run well on a CPU; set DTYPE=auto, bfloat16 or float32")
        dtype: torch.dtype = getattr(torch, wanted)
        return dtype
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "mps":
        return torch.float16
    return torch.float32 if _16_BIT_CPU_FLAGS.isdisjoint(_cpu_flags()) else torch.bfloat16


def _cpu_flags() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    return {flag for line in text.splitlines() if line.startswith(("flags", "Features")) for flag in line.split()[2:]}


def usable_cores() -> int:
    """Cores this process may use: its affinity, cut by the container's CPU quota (cgroup v2 ``cpu.max``)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no cgroup v2, or "max"
        return cores


def memory_in_use(device: torch.device) -> int:
    """Bytes the process holds on the device: its resident set on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def release_memory(device: torch.device) -> None:
    """Give freed memory back to the system: Python's, the device's cache, and glibc's arenas."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):  # not glibc
        return
