"""Calling handlers without HTTP, on one shared context."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from handlers import local
from handlers.context import Context
from handlers.local import invoke, invoke_stream, invoke_sync
from runtime.errors import InvalidRequest, ModelTooLarge, ModelUnavailable, NotFound, SettingsError
from runtime.settings import Settings
from runtime.telemetry.metrics import Metrics
from tests.support.fakes import FakeEngine, fake_context


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_shared", None)


def test_the_shared_context_is_built_on_first_use_and_kept(monkeypatch: pytest.MonkeyPatch, tiny_gpt2: Path) -> None:
    """Calls from different event loops use one model, loaded once: what a thawed function container needs."""
    monkeypatch.setenv("MODEL_NAME", str(tiny_gpt2))
    payload = {"prompt": "You", "max_new_tokens": 3, "seed": 1}
    first = invoke_sync("complete", payload)
    assert invoke_sync("complete", payload)["text"] == first["text"]
    models = local.shared_context().models
    (status,) = models.status()
    assert status.loads == 1
    assert asyncio.run(models.unload(status.id)).state == "unloaded"


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


async def test_a_load_is_measured(monkeypatch: pytest.MonkeyPatch, tiny_gpt2: Path) -> None:
    """How long the model's load took is told to the metrics that the context was given."""
    loader = SimpleNamespace(load_engine=lambda *args, **options: FakeEngine())
    monkeypatch.setitem(sys.modules, "runtime.loading.load_engine", loader)  # the real one brings torch
    metrics = Metrics()
    ctx = local.build_context(Settings.load(model_name=str(tiny_gpt2)), metrics)
    async with ctx.models.lease(None):
        pass
    assert b'warmstart:model_load_seconds{model_name="tiny-gpt2"} 0.6\n' in metrics.render()[0]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"models": ["a/b/c"]}, "MODELS='a/b/c' is not"),
        ({"models": ["./nowhere.gguf"]}, "MODELS names a .gguf file that does not exist"),
        ({"models": ["x/y@1", "x/y@2"]}, "MODELS: 'x/y@2' is the second model with the id 'x/y'"),
        ({"pinned_models": ["distilgpt2"]}, "PINNED_MODELS: 'distilgpt2' is not served; served: smollm2-135m-instruct"),
        ({"adapters_dir": "/nowhere"}, "ADAPTERS_DIR"),
    ],
)
def test_a_wrong_list_of_models_stops_the_start(settings: dict[str, Any], said: str) -> None:
    """And names the setting."""
    with pytest.raises((ModelUnavailable, SettingsError)) as caught:
        local.build_context(Settings.load(**settings))
    assert said in str(caught.value)


def test_several_models() -> None:
    """The default first; one that is named twice is served once."""
    settings = Settings.load(models="distilgpt2, smollm2-135m-instruct x/y@1", pinned_models="distilgpt2")
    found = local.build_context(settings).models.status()
    assert [(s.id, s.pinned) for s in found] == [
        ("smollm2-135m-instruct", False),
        ("distilgpt2", True),
        ("x/y", False),
    ]


def test_two_real_models_within_a_budget(
    monkeypatch: pytest.MonkeyPatch, tiny_gpt2: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    """Where one fits, the other makes room for it; what cannot fit at all is refused with both numbers."""

    def say(model: str) -> str:
        payload = {"prompt": "You may", "max_new_tokens": 8, "temperature": 0, "model": model}
        return str(asyncio.run(invoke("complete", payload, ctx=ctx))["text"])

    def build(budget: int) -> Context:
        settings = Settings.load(
            model_name=str(tiny_gpt2), models=str(tiny_llama), memory_budget_bytes=budget, cache_dir=tmp_path
        )
        return local.build_context(settings)

    ctx = build(0)
    said = {name: say(name) for name in ("tiny-gpt2", "tiny-llama")}
    both = [s.info for s in ctx.models.status() if s.info]
    assert len(both) == 2
    assert len({info.fingerprint for info in both}) == 2
    ctx.models.close()  # type: ignore[attr-defined]
    needs = [info.weights_bytes + info.kv_bytes for info in both]
    ctx = build(max(needs) + min(needs) // 8)
    assert {name: say(name) for name in ("tiny-gpt2", "tiny-llama", "tiny-gpt2")} == said
    assert [s.state for s in ctx.models.status()] == ["ready", "unloaded"]
    assert sum(s.reserved_bytes or 0 for s in ctx.models.status() if s.info) <= ctx.memory().budget_bytes
    ctx.models.close()  # type: ignore[attr-defined]
    ctx = build(100)
    with pytest.raises(
        ModelTooLarge, match=r"tiny-gpt2 needs \d+ bytes of memory, but all models together may use 100"
    ):
        say("tiny-gpt2")
