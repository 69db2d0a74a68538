"""A real encoder, all-MiniLM-L6-v2: its vectors in each type, on this repository's documentation."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.engines import Load, needs_kernels
from tests.support.minilm import minilm_folder
from tests.support.models import ROOT
from tests.support.soak import soak

pytestmark = [pytest.mark.slow, needs_kernels]


def corpus() -> tuple[list[str], list[str]]:
    """Return the paragraphs of the documentation, and sentences of them."""
    texts = [file.read_text() for file in sorted((ROOT / "docs").glob("*.md"))]
    paragraphs = [" ".join(p.split()) for text in texts for p in text.split("\n\n") if len(p) > 80 and p[0] not in "|`"]
    sentences = [s for p in paragraphs for s in re.split(r"(?<=[.:]) ", p) if 40 < len(s) < 200]
    count = soak(200, 40)
    return paragraphs[: 4 * count], sentences[:: max(1, len(sentences) // count)][:count]


def embedded(engine: Any, texts: list[str]) -> Any:
    """Return the vectors [texts, 384]."""

    async def run() -> list[Any]:
        found: list[Any] = await engine.embed(await engine.tokenize_inputs(texts, truncate="end"))
        return found

    return np.stack(asyncio.run(run()))


def test_float32_is_transformers(load: Load, tmp_path: Path) -> None:
    """The cosine to the mean of transformers' states is 0.99999 at least."""
    import torch
    from transformers import AutoModel

    engine = load(str(minilm_folder()), dtype="float32")
    model = AutoModel.from_pretrained(minilm_folder()).eval()
    texts = corpus()[0][:8]
    inputs = asyncio.run(engine.tokenize_inputs(texts, truncate="end"))
    with torch.inference_mode():
        states = [model(torch.tensor([text.ids])).last_hidden_state[0].mean(0) for text in inputs]
    expected = torch.nn.functional.normalize(torch.stack(states), dim=1).numpy()
    assert (embedded(engine, texts) * expected).sum(1).min() > 0.99999


def test_int8_finds_the_same(load: Load) -> None:
    """The cosine of int8 to float32 is 0.995 at least, and of the ten nearest paragraphs 95 in 100 are the same."""
    paragraphs, questions = corpus()
    found = {}
    for dtype in ("float32", "int8"):
        engine = load(str(minilm_folder()), dtype=dtype)
        found[dtype] = embedded(engine, paragraphs), embedded(engine, questions)
    for exact, small in zip(found["float32"], found["int8"], strict=True):
        assert (exact * small).sum(1).min() > 0.995
    nearest = {dtype: np.argsort(-(q @ p.T), axis=1)[:, :10] for dtype, (p, q) in found.items()}
    shared = [len(set(a) & set(b)) for a, b in zip(*nearest.values(), strict=True)]
    assert np.mean(shared) >= 9.5
