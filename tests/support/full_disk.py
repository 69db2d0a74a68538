"""A full disk: one that is simulated for the files of this process, and a small one that really gets full."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def full_disk(most: int | Path) -> Iterator[None]:
    """Limit the size of every file that this process writes: writes are cut short, then fail.

    Args:
        most: the limit in bytes, or a file whose size is the limit.
    """
    size = most.stat().st_size if isinstance(most, Path) else most
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def mounted_disk(folder: Path, size: str) -> Iterator[Path]:
    """Make a folder on a file system of its own during the block; skip the test if that is not allowed.

    Args:
        folder: the folder, which does not exist yet.
        size: the file system's size, such as ``64k``.
    """
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("only root may mount a small disk: sudo " + " ".join(mount))
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
