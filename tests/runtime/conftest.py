"""Fixtures of the runtime's tests."""

from __future__ import annotations

import pytest

from runtime.catalogue import CATALOGUE
from runtime.loader import open_serving
from runtime.settings import Settings
from runtime.snapshot import Snapshot


@pytest.fixture(scope="session")
def embedded_snapshot() -> Snapshot:
    """The embedded SmolLM2's, from the cache that all runs on a machine share."""
    return open_serving(
        CATALOGUE["smollm2-135m-instruct"], "int8", Settings.load().cache_dir, lambda stage, fraction: None
    )
