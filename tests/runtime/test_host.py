"""runtime.host: cores and memory as the containers around the process limit them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime import host


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


HERE = "sys/fs/cgroup/"
LIMITS: dict[str, tuple[dict[str, str], int | None]] = {
    "no cgroups": ({}, None),
    "v2, no limit": ({"proc/self/cgroup": "0::/\n", HERE + "memory.max": "max\n"}, None),
    "v2, in a namespace of its own": ({"proc/self/cgroup": "0::/\n", HERE + "memory.max": "1000\n"}, 1000),
    "v2, nested, the outer is tighter": (
        {
            "proc/self/cgroup": "0::/a/b\n",
            HERE + "a/b/memory.max": "3000\n",
            HERE + "a/memory.max": "2000\n",
            HERE + "other/memory.max": "1\n",
        },
        2000,
    ),
    "v2, the path is the host's": ({"proc/self/cgroup": "0::/docker/x\n", HERE + "memory.max": "1000\n"}, 1000),
    "v1": (
        {"proc/self/cgroup": "3:cpu:/\n4:memory:/a\n0::/\n", HERE + "memory/a/memory.limit_in_bytes": "5000\n"},
        5000,
    ),
    "v1, no limit": (
        {"proc/self/cgroup": "4:memory:/\n", HERE + "memory/memory.limit_in_bytes": "9223372036854771712\n"},
        None,
    ),
    "v1, controllers mounted together": (
        {"proc/self/cgroup": "4:cpu,memory:/\n", HERE + "cpu,memory/memory.limit_in_bytes": "6000\n"},
        6000,
    ),
}


@pytest.mark.parametrize(("files", "expected"), LIMITS.values(), ids=list(LIMITS))
def test_the_memory_limit_is_the_containers(tmp_path: Path, files: dict[str, str], expected: int | None) -> None:
    """The least of all limits around the process, and the machine's memory where there is none."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert host.memory_limit(tree(tmp_path, files)) == (expected or machine)


QUOTAS: dict[str, tuple[dict[str, str], int]] = {
    "none": ({}, 8),
    "v2, no quota": ({"proc/self/cgroup": "0::/\n", HERE + "cpu.max": "max 100000\n"}, 8),
    "v2": ({"proc/self/cgroup": "0::/\n", HERE + "cpu.max": "250000 100000\n"}, 2),
    "v2, less than one": ({"proc/self/cgroup": "0::/\n", HERE + "cpu.max": "10000 100000\n"}, 1),
    "v2, more than there are": ({"proc/self/cgroup": "0::/\n", HERE + "cpu.max": "9900000 100000\n"}, 8),
    "v2, the outer is tighter": (
        {
            "proc/self/cgroup": "0::/a\n",
            HERE + "a/cpu.max": "600000 100000\n",
            HERE + "cpu.max": "300000 100000\n",
        },
        3,
    ),
    "v1": (
        {
            "proc/self/cgroup": "3:cpu,cpuacct:/a\n",
            HERE + "cpu,cpuacct/a/cpu.cfs_quota_us": "400000\n",
            HERE + "cpu,cpuacct/a/cpu.cfs_period_us": "100000\n",
        },
        4,
    ),
    "v1, no quota": (
        {
            "proc/self/cgroup": "3:cpu:/\n",
            HERE + "cpu/cpu.cfs_quota_us": "-1\n",
            HERE + "cpu/cpu.cfs_period_us": "100000\n",
        },
        8,
    ),
}


@pytest.mark.parametrize(("files", "expected"), QUOTAS.values(), ids=list(QUOTAS))
def test_usable_cores_are_the_containers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int
) -> None:
    """Affinity, cut by the least quota around the process; never none."""
    monkeypatch.setattr(host.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert host.usable_cores(tree(tmp_path, files)) == expected


def test_the_resident_memory_is_read() -> None:
    """A Python process with pytest in it holds more than 50 MB."""
    assert host.resident_memory() > 50_000_000


def test_flags_on_macos(monkeypatch: pytest.MonkeyPatch) -> None:
    """On macOS the instruction sets come from sysctl, under Linux's names; those that it does not know are absent."""
    known = {"hw.optional.arm.FEAT_DotProd": 1, "hw.optional.arm.FEAT_I8MM": 0}
    monkeypatch.setattr("runtime.host.sys.platform", "darwin")
    monkeypatch.setattr(host, "_sysctl", lambda name: known[name])
    assert host.cpu_flags() == {"asimddp"}
