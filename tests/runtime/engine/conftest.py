"""Engines on a runner without a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.engines import Made


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
