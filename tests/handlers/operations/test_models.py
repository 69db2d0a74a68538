"""handlers.operations.models: the models served here, and steering them."""

from __future__ import annotations

import threading
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from handlers.context import Context
from handlers.operations import models
from handlers.schemas.reports import ModelEntry, ModelsResponse
from runtime.errors import InvalidRequest, ModelNotFound, ModelUnavailable
from runtime.model.catalogue import ModelSpec
from runtime.model.progress import Progress
from runtime.model_pool.registry import Registry
from runtime.status import EngineStats, ModelState, Percentiles
from tests.support.fakes import INFO, FakeEngine, fake_context, until


def two(failure: Exception | None = None, gate: threading.Event | None = None) -> Context:
    """A context on the models a and b; loading b waits for the gate, or fails."""

    def load(spec: ModelSpec, progress: Progress) -> FakeEngine:
        if spec.id == "b":
            progress("reading weights", 0.25)
            if gate is not None:
                gate.wait(10)
            if failure is not None:
                raise failure
        return FakeEngine(info=replace(INFO, name=spec.id))

    return replace(fake_context(), models=Registry([ModelSpec(name, "folder", "/x") for name in "ab"], load))


@pytest.mark.parametrize("state", ["unloaded", "loading", "ready", "draining", "failed"])
async def test_answer(state: ModelState) -> None:
    """OpenAI's list of models, with where each stands beside it; loads nothing."""
    ctx = fake_context(ready=state == "ready", state=state, failure=AssertionError("asked for the model"))
    stats = EngineStats(
        finished=3, failed=2, cancelled=1, tokens_per_second=5.5, time_to_first_token=Percentiles(0.1, 0.2)
    )
    answer = await models.handle({}, replace(ctx, model_stats=lambda model: stats))
    assert answer == {
        "object": "list",
        "data": [
            {
                "id": "fake",
                "object": "model",
                "created": 1,
                "owned_by": "warmstart",
                "root": "fake",
                "max_model_len": INFO.context_length,
                "state": state,
                "default": True,
                "pinned": False,
                "source": "folder",
                "stage": None,
                "progress": None,
                "error": None,
                "engine": "fake",
                "tasks": ["generate", "embed", "classify", "rerank"],
                "weight_types": ["float32"],
                "memory_bytes": 0,
                "reserved_bytes": None,
                "last_used": None,
                "running": 0,
                "requests": 6,
                "tokens_per_second": 5.5,
                "time_to_first_token_seconds": 0.1,
            }
        ],
    }
    ModelsResponse.model_validate(answer, extra="forbid", strict=True)


async def test_takes_nothing() -> None:
    """It has no fields."""
    with pytest.raises(InvalidRequest, match="limit: unknown field"):
        await models.handle({"limit": 5}, fake_context())


async def test_a_load_answers_at_once() -> None:
    """With the state of the moment; the load goes on."""
    gate = threading.Event()
    ctx = two(gate=gate)
    answer = await models.load({"model": "b"}, ctx)
    ModelEntry.model_validate(answer, extra="forbid", strict=True)
    assert answer["state"] == "loading"
    gate.set()
    await until(lambda: ctx.models.status()[1].state == "ready")
    assert (await models.load({"model": "b"}, ctx))["state"] == "ready"


@pytest.mark.parametrize("failure", [None, ModelUnavailable("no such weights")])
async def test_a_load_can_be_followed(failure: Exception | None) -> None:
    """Stage and share, and last how it ended."""
    gate = threading.Event()
    events: list[dict[str, Any]] = []
    async with aclosing(models.load_stream({"model": "b", "stream": True}, two(failure, gate))) as stream:
        async for event in stream:
            events.append(event)
            if event["stage"]:
                gate.set()
    assert {event["state"] for event in events[:-1]} == {"loading"}
    assert (events[-2]["stage"], events[-2]["progress"]) == ("reading weights", 0.25)
    assert (events[-1]["state"], events[-1]["error"]) == (("failed", "no such weights") if failure else ("ready", None))


async def test_one_of_them() -> None:
    """It is the entry of the list; nothing is loaded for it."""
    ctx = two(failure=AssertionError("asked for the model"))
    assert await models.get({"model": "b"}, ctx) == (await models.handle({}, ctx))["data"][1]


async def test_unload_and_switch() -> None:
    """Each answers with the model's state afterwards."""
    ctx = two()
    assert (await models.set_default({"model": "b"}, ctx))["default"]
    assert [entry["id"] for entry in (await models.handle({}, ctx))["data"]] == ["b", "a"]
    assert (await models.unload({"model": "b"}, ctx))["state"] == "unloaded"


@pytest.mark.parametrize("operation", [models.get, models.load, models.unload, models.set_default])
async def test_an_unknown_model(operation: Any) -> None:
    """Is named with those that are served."""
    with pytest.raises(ModelNotFound, match="'x' here; served: a, b"):
        await operation({"model": "x"}, two())
    with pytest.raises(ModelNotFound):
        await anext(models.load_stream({"model": "x"}, two()))
    with pytest.raises(InvalidRequest, match="model"):
        await operation({}, two())


async def test_a_switch_that_fails() -> None:
    """Raises, and the default is as it was."""
    ctx = two(ModelUnavailable("no such weights"))
    with pytest.raises(ModelUnavailable):
        await models.set_default({"model": "b"}, ctx)
    assert ctx.models.status()[0].id == "a"


async def test_a_caller_that_goes_leaves_the_load_alone() -> None:
    """Following it is not holding it."""
    gate = threading.Event()
    ctx = two(gate=gate)
    async with aclosing(models.load_stream({"model": "b"}, ctx)) as stream:
        await anext(stream)
    gate.set()
    await until(lambda: ctx.models.status()[1].state == "ready")


async def test_aliases_are_listed() -> None:
    """Behind the models, with the id of the model that they stand for; only the model itself is the default."""
    registry = Registry([ModelSpec("a", "folder", "/x")], lambda spec, progress: FakeEngine(), aliases=["gpt-4o=a"])
    ctx = replace(fake_context(), models=registry)
    found = (await models.handle({}, ctx))["data"]
    assert [(entry["id"], entry["root"], entry["default"]) for entry in found] == [
        ("a", "a", True),
        ("gpt-4o", "a", False),
    ]
    assert (await models.get({"model": "gpt-4o"}, ctx)) == found[1]
    registry.close()
