"""Calling handlers without HTTP, on one shared context."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from handlers import local
from handlers.local import invoke, invoke_stream, invoke_sync
from runtime.errors import InvalidRequest, NotFound, SettingsError
from runtime.metrics import Metrics
from runtime.settings import Settings
from tests.fakes import FakeEngine, fake_context


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_shared", None)


def test_the_shared_context_is_built_on_first_use_and_kept(monkeypatch: pytest.MonkeyPatch, tiny_gpt2: Path) -> None:
    """Calls from different event loops use one model, loaded once: what a thawed function container needs."""
    monkeypatch.setenv("MODEL_NAME", str(tiny_gpt2))
    payload = {"prompt": "You", "max_new_tokens": 3, "seed": 1}
    first = invoke_sync("complete", payload)
    engine = asyncio.run(local.shared_context().models.engine(None))
    assert invoke_sync("complete", payload) == first
    assert asyncio.run(local.shared_context().models.engine(None)) is engine
    engine.close()  # type: ignore[attr-defined]


def test_a_wrong_setting_shows_on_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at import: then nothing has been asked yet."""
    monkeypatch.setenv("DTYPE", "int3")
    with pytest.raises(SettingsError, match="DTYPE"):
        invoke_sync("health", {})


async def test_unknown_operations_are_named() -> None:
    """The error lists what there is."""
    with pytest.raises(NotFound, match="generate"):
        await invoke("nope", {}, ctx=fake_context())


async def test_streaming() -> None:
    """Pieces come one by one; an operation that cannot stream says so."""
    events = [event async for event in invoke_stream("complete", {"prompt": "x"}, ctx=fake_context())]
    assert "".join(event.get("text", "") for event in events) == "Hello there."
    with pytest.raises(InvalidRequest, match="does not stream"):
        await anext(invoke_stream("health", {}, ctx=fake_context()))


async def test_invoke_sync_refuses_to_block_a_running_loop() -> None:
    """Inside an event loop it is a mistake to say so."""
    with pytest.raises(RuntimeError):
        invoke_sync("health", {})


async def test_a_load_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long the model's load took is told to the metrics that the context was given."""
    loader = SimpleNamespace(load_engine=lambda *args: FakeEngine())
    monkeypatch.setitem(sys.modules, "runtime.load_engine", loader)  # the real one brings torch
    metrics = Metrics()
    ctx = local.build_context(Settings.load(model_name="distilgpt2"), metrics)
    await ctx.models.engine(None)
    assert b'warmstart:model_load_seconds{model_name="distilgpt2"} 0.6\n' in metrics.render()[0]
