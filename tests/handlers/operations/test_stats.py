"""``stats``: what the service does now and has done."""

from __future__ import annotations

from dataclasses import replace

import pytest

from handlers.operations import stats
from handlers.schemas.reports import StatsResponse
from runtime.errors import InvalidRequest
from runtime.status import Memory
from runtime.telemetry.metrics import Metrics
from runtime.types import Job, SamplingParams
from tests.support.fakes import fake_context


async def test_stats() -> None:
    """Each model's state and statistics, their sums, memory and the cache, in the documented shape."""
    metrics = Metrics(lambda: 5.0)
    record = metrics.model("fake").request([Job((1,), SamplingParams(2))])
    record.prompt(7, 3)
    record.token(0, 6.0, 5.5, None)
    record.token(0, 6.5, 5.5, "stop")
    record.closed(5.5)
    ctx = replace(fake_context(), model_stats=metrics.model_stats, memory=lambda: Memory(10, 20, 15))
    answer = await stats.handle({}, ctx)
    StatsResponse.model_validate(answer, strict=True)
    assert (answer["time"], answer["uptime_seconds"], answer["version"]) == (1_700_000_000.5, 5.0, "0.test")
    (model,) = answer["models"]
    assert (model["id"], model["state"], model["default"]) == ("fake", "ready", True)
    assert (model["prompt_tokens"], model["cached_tokens"], model["generated_tokens"], model["finished"]) == (
        7,
        3,
        2,
        1,
    )
    assert model["time_to_first_token"] == {"p50": 1.0, "p95": 1.0}
    assert model["inter_token_latency"] == {"p50": 0.5, "p95": 0.5}
    assert answer["total"] == {name: model[name] for name in answer["total"]}
    assert answer["memory"]["process_bytes"] == 10
    assert answer["cache"]["store"] == "off"


async def test_a_model_that_is_not_loaded() -> None:
    """It has zeros and no spreads, and is not counted among what models hold; asking loads nothing."""
    ctx = fake_context(ready=False)
    answer = await stats.handle({}, ctx)
    StatsResponse.model_validate(answer, strict=True)
    assert answer["models"][0]["state"] == "loading"
    assert answer["models"][0]["time_to_first_token"] is None
    assert answer["memory"]["models_bytes"] == 0
    assert ctx.models.leases == 0  # type: ignore[attr-defined]


async def test_it_takes_nothing() -> None:
    """A field is a mistake."""
    with pytest.raises(InvalidRequest):
        await stats.handle({"model": "fake"}, fake_context())
