"""Which device a model runs on, in which number type, with how many cores and how much memory.

Devices are named as torch names them (``cpu``, ``cuda:0``, ``mps``). torch is imported only where a driver or a Mac
says that there may be more than a CPU.
"""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

from runtime.errors import ModelUnavailable

_16_BIT_CPU_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})  # the last is how Arm names it
_NO_LIMIT = 1 << 60  # cgroup v1 writes a number above this for "none"


def select_device(wanted: str) -> str:
    """``auto``: CUDA when present, else MPS, else CPU.

    Raises:
        ModelUnavailable: a device was named that is not here.
    """
    if wanted == "auto":
        return _accelerator() if _may_have_cuda() or _may_have_mps() else "cpu"
    if wanted == "cpu":
        return wanted
    import torch

    kind, _, index = wanted.partition(":")
    present = (
        torch.backends.mps.is_available()
        if kind == "mps"
        else torch.cuda.is_available() and int(index or 0) < torch.cuda.device_count()
    )
    if not present:
        raise ModelUnavailable(f"DEVICE={wanted} is not present on this machine; set DEVICE=auto or cpu")
    return wanted if kind == "mps" else f"cuda:{index or 0}"


def _accelerator() -> str:
    import torch

    if torch.cuda.is_available():
        return "cuda:0"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _may_have_cuda() -> bool:
    """Ask the driver, which takes milliseconds where importing torch takes seconds."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        count = ctypes.c_int()
        return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
    except (OSError, AttributeError):  # no driver
        return False


def _may_have_mps() -> bool:
    return sys.platform == "darwin" and platform.machine() == "arm64"


def select_dtype(wanted: str, device: str, *, int8: bool = False) -> str:
    """8 or 16 bits only where the device is fast at them; a named type is obeyed where the device can run it at all.

    Args:
        wanted: auto, int8, float32, bfloat16 or float16.
        device: from ``select_device``.
        int8: whether whoever runs the model has kernels for 8-bit weights.

    Raises:
        ModelUnavailable: float16 on a CPU, whose kernels for it are slower than float32's and in part missing.
    """
    if wanted == "float16" and device == "cpu":
        raise ModelUnavailable("DTYPE=float16 does not run well on a CPU; set DTYPE=auto, bfloat16 or float32")
    if wanted != "auto":
        return wanted
    if device.startswith("cuda"):
        import torch

        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    if device == "mps":
        return "float16"
    if int8:
        return "int8"
    return "float32" if _16_BIT_CPU_FLAGS.isdisjoint(cpu_flags()) else "bfloat16"


def cpu_flags() -> frozenset[str]:
    """The instruction sets that Linux names; nothing elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    lines = (line for line in text.splitlines() if line.startswith(("flags", "Features")))
    return frozenset(next(lines, "").split()[2:])


def usable_cores(root: Path = Path("/")) -> int:
    """Cores this process may use: its affinity, cut by the CPU quotas of its containers.

    Args:
        root: where ``proc`` and ``sys`` are.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in _cgroups(root, "cpu"):
        for files in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
            try:
                quota, period = (int(word) for file in files for word in (group / file).read_text().split())
            except (OSError, ValueError):  # none here, or "max"
                continue
            if quota > 0:
                cores = min(cores, round(quota / period))
    return max(1, cores)


def memory_limit(root: Path = Path("/")) -> int:
    """Bytes of memory this process may use: the least of its containers' limits, or else what the machine has.

    Args:
        root: where ``proc`` and ``sys`` are.
    """
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for group in _cgroups(root, "memory"):
        for file in ("memory.max", "memory.limit_in_bytes"):
            try:
                limits.append(int((group / file).read_text()))
            except (OSError, ValueError):  # none here, or "max"
                continue
    return min(limit for limit in limits if limit < _NO_LIMIT)


def _cgroups(root: Path, controller: str) -> Iterator[Path]:
    """The control groups this process is in and those around them, of both versions (cgroups(7)).

    A path may be the host's and not be there; its ancestors up to the mount, which is the container's own, still are.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            mounts = [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"]
        elif controller in controllers.split(","):
            mounts = [root / "sys/fs/cgroup" / controllers, root / "sys/fs/cgroup" / controller]
        else:
            continue
        inner = Path(path.lstrip("/"))
        for mount in mounts:
            yield from (mount / part for part in (inner, *inner.parents))


def memory_in_use(device: object) -> int:
    """Bytes the process holds on the device (torch's, or its name): its resident set on a CPU."""
    if str(device).startswith("cuda"):
        import torch

        return int(torch.cuda.memory_allocated(str(device)))
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def release_memory(device: object) -> None:
    """Give freed memory back to the system: Python's, the device's (torch's, or its name), and glibc's arenas."""
    gc.collect()
    if str(device).startswith("cuda"):
        import torch

        torch.cuda.empty_cache()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):  # not glibc
        return
