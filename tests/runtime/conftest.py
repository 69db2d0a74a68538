"""Fixtures of the runtime's tests."""

from __future__ import annotations

import pytest

from runtime.loading.loader import open_serving
from runtime.model.catalogue import CATALOGUE
from runtime.model.snapshot import Snapshot
from runtime.settings import Settings


@pytest.fixture(scope="session")
def embedded_snapshot() -> Snapshot:
    """The embedded SmolLM2's, from the cache that all runs on a machine share."""
    return open_serving(
        CATALOGUE["smollm2-135m-instruct"], "int8", Settings.load().cache_dir, lambda stage, fraction: None
    )
