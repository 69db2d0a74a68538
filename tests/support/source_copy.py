"""A copy of the tree from which a test builds, because setuptools leaves folders in it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from tests.support.models import ROOT

_SKIPPED = shutil.ignore_patterns(".*", "tests", "__pycache__", "*.egg-info")
_MADE_HERE = {"build", "dist", "image-build"}


def copy_source(folder: Path) -> None:
    """Copy the tree into a new folder, with the compiled kernels, which no wheel may take.

    The folders at its top that git ignores are left out: after ``make soak`` they are several gigabytes.
    """

    def ignored(path: str, names: Sequence[str]) -> set[str]:
        return _SKIPPED(path, list(names)) | (_MADE_HERE if Path(path) == ROOT else set())

    shutil.copytree(ROOT, folder, ignore=ignored)
