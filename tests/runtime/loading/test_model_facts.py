"""runtime.loading.model_facts: what the files of a model say of it beside its weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from runtime.loading.load_engine import load_engine
from runtime.model.catalogue import parse_model_name
from runtime.settings import Settings


@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_the_models_own_sampling(engine: str, tiny_llama: Path, tmp_path: Path) -> None:
    """With GENERATION_CONFIG=model it is that of generation_config.json in both engines; by default there is none."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    generation = {"eos_token_id": 2, "temperature": 0.6, "top_k": 50}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    found = {}
    for choice in ("openai", "model"):
        settings = Settings.load(
            device="cpu",
            engine=engine,
            generation_config=choice,
            cache_dir=str(tmp_path / "cache"),
            kv_cache_bytes=2**24,
        )
        made = load_engine(parse_model_name(str(folder)), settings, lambda stage, share: None)
        found[choice] = made.info.sampling_defaults
        made.close()
    assert found == {"openai": (), "model": (("temperature", 0.6), ("top_k", 50))}
