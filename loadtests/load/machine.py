"""Describes the machine on which the measurements were made."""

from __future__ import annotations

import os
import platform
from pathlib import Path

# The CPU flags that determine the speed of matrix products.
TELLING_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "avx_vnni",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
)


def machine_facts() -> dict[str, str]:
    """Return processor, cores, memory and system. Facts that the system does not tell are left out."""
    cpu, memory = _fields("/proc/cpuinfo"), _fields("/proc/meminfo")
    flags = cpu.get("flags", "").split()
    facts = {
        "processor": f"{cpu['model name']} ({_model(cpu)})" if "model name" in cpu else platform.processor(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "instructions": " ".join(flag for flag in TELLING_FLAGS if flag in flags)
        or "none of " + " ".join(TELLING_FLAGS),
        "memory": f"{int(memory['MemTotal'].split()[0]) / 1024**2:.0f} GiB" if "MemTotal" in memory else "",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }
    return {name: value for name, value in facts.items() if value}


def _model(cpu: dict[str, str]) -> str:
    """Return the CPU's family and model numbers, because some clouds hide the product's name."""
    return f"family {cpu.get('cpu family', '?')}, model {cpu.get('model', '?')}"


def _fields(path: str) -> dict[str, str]:
    """Parse ``name: value`` lines; the first of each name counts."""
    file, found = Path(path), dict[str, str]()
    for line in file.read_text().splitlines() if file.exists() else ():
        name, colon, value = line.partition(":")
        if colon:
            found.setdefault(name.strip(), value.strip())
    return found
