"""Which engine a model gets, and what its load does and does not do."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import ModelUnavailable
from runtime.loading import kernels
from runtime.loading.load_engine import load_engine, pull
from runtime.loading.loader import open_serving
from runtime.model.catalogue import parse_model_name
from runtime.model.load_timer import Phases
from runtime.settings import Settings
from runtime.types import Job, Message, SamplingParams
from tests.support.models import ROOT, save_multimodal, train_tokenizer


@contextmanager
def loaded(model: Path, cache: Path, phases: Phases | None = None, **settings: Any) -> Iterator[Any]:
    chosen = Settings.load(**{"cache_dir": cache, "dtype": "float32", **settings})
    engine = load_engine(parse_model_name(str(model)), chosen, lambda stage, share: None, phases=phases)
    try:
        yield engine
    finally:
        engine.close()


async def greedy(engine: Any) -> list[int]:
    ids = await engine.encode_chat([Message("user", "You may not use this file except in compliance")])
    return [token.id async for token in engine.stream([Job(ids, SamplingParams(max_new_tokens=24, temperature=0))])]


@pytest.fixture
def codegen(tmp_path: Path) -> Path:
    """A tiny model of an architecture that the fast engine does not support."""
    from transformers import CodeGenConfig, CodeGenForCausalLM

    folder = tmp_path / "codegen"
    config = CodeGenConfig(vocab_size=600, n_embd=32, n_layer=1, n_head=4, rotary_dim=8)
    CodeGenForCausalLM(config).save_pretrained(folder)
    train_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["tiny_gpt2", "tiny_llama"])
@pytest.mark.parametrize("compiled", [True, False])
async def test_the_fast_engine_says_what_the_reference_says(
    name: str, compiled: bool, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Token for token in float32, with compiled kernels (where there are any) and on torch without them."""
    if not compiled:
        monkeypatch.setattr(kernels, "host_kernels", lambda cache_dir: None)
    model: Path = request.getfixturevalue(name)
    with loaded(model, tmp_path, engine="reference") as reference, loaded(model, tmp_path, engine="fast") as fast:
        assert await greedy(fast) == await greedy(reference)
        assert reference.info.engine == "reference"
        assert fast.info.engine == ("native" if kernels.host_kernels(tmp_path) else "torch")
        same = ("name", "source", "architecture", "parameters", "device", "context_length", "vocabulary_size")
        for field in (*same, "chat_template", "dtype"):
            assert getattr(fast.info, field) == getattr(reference.info, field)
        assert fast.chat_stops == reference.chat_stops


async def test_a_multimodal_model_is_served_as_text(tmp_path: Path) -> None:
    """What is told of it is told by the configuration of its text model."""
    images = {"mm_tokens_per_image": 4, "image_token_index": 599, "boi_token_index": 598, "eoi_token_index": 597}
    folder = save_multimodal(tmp_path / "gemma3", "gemma3", **images)
    with loaded(folder, tmp_path, engine="auto") as engine:
        assert engine.info.architecture == "Gemma3ForConditionalGeneration"
        assert (engine.info.vocabulary_size, engine.info.context_length) == (600, 64)
        assert await greedy(engine)


async def test_a_model_the_decoder_does_not_know_is_served_all_the_same(
    codegen: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By the reference engine, and the log says why."""
    caplog.set_level(logging.INFO, "warmstart.load")
    with loaded(codegen, tmp_path, engine="auto") as engine:
        assert engine.info.engine == "reference"
        assert await greedy(engine)
    assert "CodeGenForCausalLM" in caplog.text


def test_the_fast_engine_or_none(codegen: Path, tmp_path: Path) -> None:
    """Who asks for the fast engine alone is told why there is none."""
    refused = pytest.raises(ModelUnavailable, match=r"ENGINE=fast.*CodeGenForCausalLM")
    with refused, loaded(codegen, tmp_path, engine="fast"):
        pass


def test_a_load_tells_where_its_time_went(tiny_llama: Path, tmp_path: Path) -> None:
    """The first one converts and packs, the second opens."""
    first, second = Phases(), Phases()
    for phases in (first, second):
        with loaded(tiny_llama, tmp_path, phases, engine="fast") as engine:
            assert engine.info.warmup_seconds == phases.seconds["warm-up"]
            assert engine.info.load_seconds > phases.seconds["tokenizer"]
    assert list(first.seconds) == ["convert", "pack", "tokenizer", "weights", "runner", "warm-up"]
    assert list(second.seconds) == ["tokenizer", "weights", "runner", "warm-up"]


def test_a_pull_leaves_nothing_to_convert(tiny_llama: Path, tmp_path: Path) -> None:
    """Its snapshot is of the number type that a start would take."""
    pull(parse_model_name(str(tiny_llama)), Settings.load(cache_dir=tmp_path))
    phases = Phases()
    with loaded(tiny_llama, tmp_path, phases, engine="fast", dtype="auto"):
        assert "convert" not in phases.seconds


def test_a_pull_proves_that_the_files_load(codegen: Path, tmp_path: Path) -> None:
    """Also where there is no snapshot to make."""
    settings = Settings.load(cache_dir=tmp_path / "cache")
    pull(parse_model_name(str(codegen)), settings)
    assert not (tmp_path / "cache").exists()
    for file in codegen.glob("*.safetensors"):
        file.write_bytes(b"nothing")
    with pytest.raises(ModelUnavailable):
        pull(parse_model_name(str(codegen)), settings)


def test_nothing_heavy_is_imported_on_the_way_to_a_first_token(tiny_llama: Path, tmp_path: Path) -> None:
    """A process that opens a snapshot and encodes a chat has neither torch nor transformers nor the hub's client."""
    open_serving(parse_model_name(str(tiny_llama)), "int8", tmp_path, lambda stage, share: None)
    program = """
import json, sys
from pathlib import Path
import server
import runtime.loading.load_engine
from runtime.model.catalogue import parse_model_name
from runtime.model.chat_encoder import ChatEncoder
from runtime.device import select_device
from runtime.loading.loader import open_serving
from runtime.types import Message
select_device("auto")
snapshot = open_serving(parse_model_name(sys.argv[1]), "int8", Path(sys.argv[2]), lambda stage, share: None)
ids = ChatEncoder(snapshot.tokenizer).encode([Message("user", "Hello")])
print(json.dumps([len(ids), [name for name in sys.modules if "." not in name]]))
"""
    command = [sys.executable, "-c", program, str(tiny_llama), str(tmp_path)]
    output = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
    count, modules = json.loads(output.splitlines()[-1])
    assert count > 0
    assert {"torch", "transformers", "safetensors", "gguf", "huggingface_hub"}.isdisjoint(modules)


def test_unloading_gives_the_memory_back() -> None:
    """The resident set falls by most of the embedded model's weights (in a process of its own)."""
    program = """
import asyncio, json, psutil
from handlers.local import build_context, invoke
from runtime.settings import Settings
ctx = build_context(Settings.load())
rss = psutil.Process().memory_info
asyncio.run(invoke("complete", {"prompt": "Hello", "max_new_tokens": 4}, ctx=ctx))
loaded, (status,) = rss().rss, ctx.models.status()
assert asyncio.run(ctx.models.unload(status.id)).state == "unloaded"
print(json.dumps([loaded, rss().rss, status.info.weights_bytes]))
"""
    output = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
    before, after, weights = json.loads(output.splitlines()[-1])
    assert before - after > 0.8 * weights
