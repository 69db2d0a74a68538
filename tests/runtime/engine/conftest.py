"""Engines on a runner without a model, and on real models."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.loading.load_engine import load_engine
from runtime.model.catalogue import parse_model_name
from runtime.settings import Settings
from tests.support.engines import Load, Made


@pytest.fixture
def make() -> Iterator[Callable[..., Made]]:
    """Makes engines, and ends them."""
    made: list[Made] = []

    def maker(*args: Any, **options: Any) -> Made:
        made.append(Made(*args, **options))
        return made[-1]

    yield maker
    for one in made:
        if one.runner.gate is not None:
            one.runner.gate.release(1_000_000)
        one.engine.close()
        assert one.runner.closed
        assert not one.engine.alive


@pytest.fixture(scope="module")
def load() -> Iterator[Load]:
    """Loads engines, each once."""
    loaded: dict[Any, Any] = {}

    def make(name: str | Path, **settings: Any) -> Any:
        key = (str(name), tuple(sorted(settings.items())))
        if key not in loaded:
            made = Settings.load(device="cpu", **settings)
            loaded[key] = load_engine(parse_model_name(str(name)), made, lambda stage, share: None)
        return loaded[key]

    yield make
    gc.freeze()  # each engine that closes collects cycles, among all that the tests have imported
    for engine in loaded.values():
        engine.close()
    gc.unfreeze()
