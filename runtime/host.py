"""The host as Linux and its containers report it: instruction sets, cores and memory. Imports no torch."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Iterator
from pathlib import Path

_NO_LIMIT = 1 << 60  # cgroup v1 writes a number above this for "none"


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


def resident_memory() -> int:
    """Bytes of the process's resident set; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def trim_memory() -> None:
    """Give memory that was freed back to the system: Python's cycles are collected, then glibc's arenas trimmed."""
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):  # not glibc
        return
