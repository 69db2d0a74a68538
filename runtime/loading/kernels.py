"""Finds the compiled kernels for this processor, or compiles them once into the cache folder."""

from __future__ import annotations

import fcntl
import logging
import os
import subprocess
import time
from functools import cache
from pathlib import Path

from runtime.engine.native import build, library
from runtime.host import cpu_flags

_log = logging.getLogger("warmstart.load")


def host_kernels(cache_dir: Path) -> library.Kernels | None:
    """Return the best kernels that this processor can run; None if there are none and none can be compiled.

    ``make serve`` and the image build them next to their sources. A package from a wheel has the sources only, so the
    first process that needs them compiles them into the cache folder once, which takes seconds; other processes wait.

    Args:
        cache_dir: the value of ``CACHE_DIR``.
    """
    folder = cache_dir / "kernels"
    found = library.usable() or library.usable(folder)
    if not found and _compile(folder):
        library.usable.cache_clear()
        found = library.usable(folder)
    return next(iter(found), None)


@cache  # so that a failure is logged once
def _compile(folder: Path) -> bool:
    """Compile the kernels for this processor into a folder, unless another process has; return whether it succeeded."""
    level = next(level for level in build.levels() if level.flags <= cpu_flags())
    if build.compiler() is None:
        _warn("there is no C++ compiler; install one (apt-get install g++) and start again")
        return False
    started = time.monotonic()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not build.path_of(level, folder).exists():
                _log.info("compiling the kernels for this processor (%s), once", level.name)
                build.compile_levels([level], folder)
                _log.info("the kernels are compiled, in %.0f s", time.monotonic() - started)
        finally:
            os.close(lock)  # also releases the lock
    except (OSError, subprocess.CalledProcessError) as error:
        _warn(f"they cannot be compiled into CACHE_DIR: {error}")
        return False
    return True


def _warn(reason: str) -> None:
    _log.warning("without compiled kernels models run through torch, several times more slowly: %s", reason)
