"""Reads the host's instruction sets, cores and memory, with its containers' limits, and whether torch is installed."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from runtime.errors import ModelUnavailable

TORCH_PACKAGES = ("accelerate", "peft", "safetensors", "torch", "transformers")
"""What ``requirements/base.txt`` adds to ``requirements/slim.txt``."""

_NO_LIMIT = 1 << 60  # cgroup v1 writes a number above this for "none"
_MAC_FLAGS = {"FEAT_DotProd": "asimddp", "FEAT_I8MM": "i8mm"}


def cpu_flags() -> frozenset[str]:
    """Return the CPU's instruction sets as Linux's ``/proc/cpuinfo`` names them.

    On macOS these are the ones that the kernels use, by ``hw.optional.arm`` of sysctl(3). The empty set elsewhere.
    """
    if sys.platform == "darwin":
        return frozenset(flag for feature, flag in _MAC_FLAGS.items() if _sysctl(f"hw.optional.arm.{feature}"))
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    lines = (line for line in text.splitlines() if line.startswith(("flags", "Features")))
    return frozenset(next(lines, "").split()[2:])


def _sysctl(name: str) -> int:
    value, size = ctypes.c_int32(), ctypes.c_size_t(4)
    known = ctypes.CDLL(None).sysctlbyname(name.encode(), ctypes.byref(value), ctypes.byref(size), None, 0) == 0
    return value.value if known else 0


def usable_cores(root: Path = Path("/")) -> int:
    """Return the number of cores this process may use: its CPU affinity, limited by its containers' CPU quotas.

    Args:
        root: the directory that contains ``proc`` and ``sys``.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in _cgroups(root, "cpu"):
        for files in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
            try:
                quota, period = (int(word) for file in files for word in (group / file).read_text().split())
            except (OSError, ValueError):  # no such file, or no limit ("max")
                continue
            if quota > 0:
                cores = min(cores, round(quota / period))
    return max(1, cores)


def memory_limit(root: Path = Path("/")) -> int:
    """Return the bytes of memory this process may use: the least of its containers' limits and the machine's memory.

    Args:
        root: the directory that contains ``proc`` and ``sys``.
    """
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for group in _cgroups(root, "memory"):
        for file in ("memory.max", "memory.limit_in_bytes"):
            try:
                limits.append(int((group / file).read_text()))
            except (OSError, ValueError):  # no such file, or no limit ("max")
                continue
    return min(limit for limit in limits if limit < _NO_LIMIT)


def _cgroups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the directories of this process's control groups and of their ancestors, versions 1 and 2 (cgroups(7)).

    A path may be the host's and not exist in the container; its ancestor at the mount, the container's own, does exist.

    Args:
        root: the directory that contains ``proc`` and ``sys``.
        controller: ``cpu`` or ``memory``.
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


def resident_memory() -> int:
    """Return the bytes of the process's resident set; 0 on systems without ``/proc``."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def trim_memory() -> None:
    """Return freed memory to the system: collect Python's reference cycles, then trim glibc's arenas."""
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):  # not glibc
        return


def torch_installed() -> bool:
    """Return whether torch and transformers are installed."""
    return find_spec("torch") is not None and find_spec("transformers") is not None


def require_torch(reason: str) -> None:
    """Check that torch and transformers are installed.

    Args:
        reason: what needs them, as the beginning of the error's message.

    Raises:
        ModelUnavailable: they are not.
    """
    if not torch_installed():
        raise ModelUnavailable(
            f"{reason} needs torch and transformers, which are not installed here; use the full image, not the slim "
            "one, or install the wheel with its dependencies"
        )
