"""Environments of programs whose packages this one lacks. Each is made once, whatever runs at the same time."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path


def make_once(folder: Path, install: Callable[[], None]) -> None:
    """Make an environment unless it is complete; wait while another process makes it.

    Args:
        folder: its folder. Beside it stands a file that is locked meanwhile.
        install: fills the folder, which exists and is empty. If it raises, the next call starts anew.
    """
    done = folder / "installed"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            install()
            done.touch()
