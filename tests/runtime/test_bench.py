"""``warmstart bench``: its results agree with each other. Their size depends on the machine and is not tested."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from runtime import bench
from runtime.errors import InvalidRequest, ModelUnavailable
from runtime.model.catalogue import parse_model_name
from runtime.settings import Settings
from tests.support.engines import needs_kernels, without_kernels
from tests.support.soak import soak

ROOT = Path(__file__).resolve().parents[2]


def measured(model: Path | str, *, text: str | None = None, **settings: Any) -> dict[str, Any]:
    """Measure a model."""
    return bench.bench(parse_model_name(str(model)), Settings.load(device="cpu", **settings), text=text)


@pytest.mark.parametrize("kernels", [pytest.param(True, marks=needs_kernels), False])
def test_stats_are_whole(kernels: bool, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every part is measured, through compiled kernels and through torch, and they survive JSON."""
    monkeypatch.setattr(bench, "_READ_BYTES", 1 << 20)
    if not kernels:
        without_kernels(monkeypatch)
    found = measured(tiny_llama, dtype="float32", cache_dir=tmp_path, kv_cache_bytes=8 << 20)
    assert set(found["prefill"]) == {16, 64}
    assert set(found["decode"]) == {1, 2, 4, 8, 16, 32}
    assert all(rate > 0 for rate in (*found["prefill"].values(), *found["decode"].values()))
    assert {"imports", "tokenizer", "weights", "runner", "warm-up"} <= set(found["cold_start_seconds"])
    assert found["bandwidth"]["achieved"] > 0 < found["bandwidth"]["measured"]
    assert json.loads(json.dumps(found))["model"] == found["model"]
    text = bench.table(found)
    for title in ("cold start", "prefill", "decode", "GB/s"):
        assert title in text


@pytest.mark.parametrize("kernels", [pytest.param(True, marks=needs_kernels), False])
def test_perplexity_is_that_of_transformers(
    kernels: bool, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32 it is the exponential of transformers' own mean loss, through compiled kernels and through torch."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not kernels:
        without_kernels(monkeypatch)
    monkeypatch.setattr(bench, "_READ_BYTES", 1 << 20)
    monkeypatch.setattr(bench, "_WINDOW", 100)
    text = (ROOT / "LICENSE").read_text()[:300]
    ids = AutoTokenizer.from_pretrained(tiny_llama).encode(text)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    losses = []
    with torch.inference_mode():
        for start in range(0, len(ids) - 1, 100):
            window = torch.tensor([ids[start : start + 100]])
            if window.shape[1] > 1:
                losses += [float(model(window, labels=window).loss)] * (window.shape[1] - 1)
    found = measured(tiny_llama, text=text, dtype="float32", cache_dir=tmp_path, kv_cache_bytes=8 << 20)
    assert found["perplexity"] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-3)


@pytest.mark.slow
@needs_kernels
def test_int8_keeps_the_quality(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a fixed text the embedded model's perplexity with int8 weights is within 1 % of that with bfloat16."""
    for name in ("_PREFILL_TOKENS", "_DECODE_BATCHES"):
        monkeypatch.setattr(bench, name, (1,))
    monkeypatch.setattr(bench, "_STEPS", 1)
    monkeypatch.setattr(bench, "_READ_BYTES", 1 << 20)
    text = (ROOT / "loadtests/quality.txt").read_text()
    text = text[: soak(len(text), len(text) // 5)]
    exact, rounded = (
        measured("smollm2-135m-instruct", text=text, dtype=dtype)["perplexity"] for dtype in ("bfloat16", "int8")
    )
    assert rounded < 1.01 * exact


def test_what_cannot_be_measured_is_said(tiny_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that only the reference engine runs, and a text too short for a perplexity, are named errors."""
    config = json.loads((tiny_gpt2 / "config.json").read_text())
    folder = tmp_path / "odd"
    folder.mkdir()
    for file in tiny_gpt2.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "config.json").write_text(json.dumps(config | {"scale_attn_by_inverse_layer_idx": True}))
    with pytest.raises(ModelUnavailable, match="scale_attn_by_inverse_layer_idx"):
        measured(folder, cache_dir=tmp_path)
    monkeypatch.setattr(bench, "_READ_BYTES", 1 << 20)
    with pytest.raises(InvalidRequest, match="too short"):
        measured(tiny_gpt2, text="", cache_dir=tmp_path, kv_cache_bytes=8 << 20)
