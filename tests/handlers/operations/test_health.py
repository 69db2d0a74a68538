"""handlers.operations.health: the service's own view of itself."""

from __future__ import annotations

from typing import Any

import pytest

from handlers.operations import health
from handlers.schemas.reports import HealthResponse
from runtime.errors import InvalidRequest
from tests.support.fakes import fake_context


@pytest.mark.parametrize(
    ("models", "status"),
    [
        pytest.param({}, "ok", id="ready"),
        pytest.param({"ready": False, "state": "loading"}, "loading", id="loading"),
        pytest.param({"ready": False, "state": "unloaded"}, "idle", id="loads on the first call"),
        pytest.param({"ready": False, "state": "failed", "error": "no such file"}, "failed", id="load failed"),
        pytest.param({"ready": False, "state": "ready"}, "failed", id="loaded, but the worker is dead"),
        pytest.param({"ready": False, "state": "ready", "draining": True}, "draining", id="draining"),
        pytest.param({"ready": False, "state": "loading", "draining": True}, "draining", id="draining while loading"),
    ],
)
async def test_status(models: dict[str, Any], status: str) -> None:
    """One word for the whole service; draining goes before everything else."""
    answer = await health.handle({}, fake_context(**models))
    assert answer["status"] == status
    HealthResponse.model_validate(answer, extra="forbid", strict=True)


async def test_answer() -> None:
    """Version, time since the start, and how far each model's load is."""
    ctx = fake_context(ready=False, stage="converting", progress=0.5)
    assert await health.handle({}, ctx) == {
        "status": "loading",
        "version": "0.test",
        "uptime_seconds": 5.0,
        "models": [{"id": "fake", "state": "loading", "stage": "converting", "progress": 0.5, "error": None}],
    }


async def test_loads_nothing() -> None:
    """Asking after the health asks no model for anything."""
    ctx = fake_context(failure=AssertionError("asked for the model"))
    assert (await health.handle({}, ctx))["status"] == "ok"


async def test_takes_nothing() -> None:
    """It has no fields."""
    with pytest.raises(InvalidRequest, match="verbose: unknown field"):
        await health.handle({"verbose": True}, fake_context())
