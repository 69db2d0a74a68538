"""How models share the memory there is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runtime.errors import ModelUnavailable
from runtime.host import memory_limit
from runtime.loading.footprint import default_budget
from runtime.loading.load_engine import load_engine
from runtime.loading.memory_plan import MemoryPlan
from runtime.model.catalogue import ModelSpec, parse_model_name
from runtime.settings import Settings

MB = 1 << 20


def nowhere(stage: str, share: float | None) -> None:
    pass


def plan(*models: Path, **settings: Any) -> tuple[MemoryPlan, list[ModelSpec]]:
    specs = [parse_model_name(str(model)) for model in models]
    return MemoryPlan(specs, Settings.load(**settings)), specs


def test_the_budget_is_the_setting_or_comes_from_the_limit() -> None:
    """Of the container, if it has one."""
    assert plan(memory_budget_bytes=5)[0].budget == 5
    assert plan(device="cpu")[0].budget == default_budget(memory_limit())


@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_the_need_is_near_what_the_model_takes(tiny_gpt2: Path, tmp_path: Path, engine: str) -> None:
    """Estimated from the source, and known to the byte once there is a snapshot; keys and values are never exceeded."""
    made, (spec,) = plan(tiny_gpt2, cache_dir=tmp_path, engine=engine, memory_budget_bytes=500 * MB)
    before = made.need(spec, nowhere)
    loaded = load_engine(spec, Settings.load(cache_dir=tmp_path, engine=engine), nowhere, plan=made)
    info = loaded.info
    loaded.close()
    assert info.kv_bytes <= made.kv_bytes(spec)
    if engine == "reference":
        assert (info.kv_bytes, before) == (0, pytest.approx(info.weights_bytes, rel=0.1))
    else:
        assert made.need(spec, nowhere) == info.weights_bytes + made.kv_bytes(spec)
        assert before - made.kv_bytes(spec) == pytest.approx(info.weights_bytes, rel=0.5)


def test_a_set_size_of_keys_and_values_is_each_models(tiny_gpt2: Path, tiny_llama: Path) -> None:
    """KV_CACHE_BYTES is not shared; the reference engine takes none."""
    made, specs = plan(tiny_gpt2, tiny_llama, kv_cache_bytes=7 * MB)
    assert [made.kv_bytes(spec) for spec in specs] == [7 * MB, 7 * MB]
    made, specs = plan(tiny_gpt2, kv_cache_bytes=7 * MB, engine="reference")
    assert made.kv_bytes(specs[0]) == 0


def test_a_model_that_is_not_here_counts_for_nothing_until_it_is(
    tiny_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own need cannot be told without the hub."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    absent = ModelSpec("owner/none", "hub", "owner/none")
    here = parse_model_name(str(tiny_gpt2))
    made = MemoryPlan([here, absent], Settings.load(memory_budget_bytes=500 * MB))
    assert made.need(here, nowhere) > 0
    with pytest.raises(ModelUnavailable):
        made.need(absent, nowhere)


def test_files_that_are_gone_stop_nobody_else(tiny_gpt2: Path, tmp_path: Path) -> None:
    """The other model's own load tells of it."""
    gone = ModelSpec("gone", "folder", str(tmp_path / "gone"))
    here = parse_model_name(str(tiny_gpt2))
    assert MemoryPlan([here, gone], Settings.load()).need(here, nowhere) > 0
