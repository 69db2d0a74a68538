"""The quickstart's question to the embedded model: every engine and number type answers it alike.

"The" is before "L" by 0.08 only (log-probabilities -1.88 and -1.96 in float32), so coarse logits answer otherwise.
"""

from __future__ import annotations

from contextlib import aclosing

import pytest

from runtime.loading.load_engine import load_engine
from runtime.model.catalogue import CATALOGUE
from runtime.settings import Settings
from runtime.types import Job, Message, SamplingParams
from tests.support.engines import needs_kernels
from tests.support.soak import SOAK

# In float32 test_proof.py compares this model's tokens on the kernels with the reference engine's, and test_runner.py
# torch's with a dense decoder's.
EXACT = ("float32",) if SOAK else ()
PATHS = [
    *(pytest.param("native", dtype, marks=needs_kernels) for dtype in ("int8", "bfloat16", "float32")),
    *(("torch", dtype) for dtype in ("int8", "bfloat16", *EXACT)),
    *(("reference", dtype) for dtype in ("bfloat16", *EXACT)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "dtype"), PATHS)
async def test_the_capital_of_france(engine: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedy, through the model's own chat template, to the end token."""
    if engine == "torch":
        monkeypatch.setattr("runtime.loading.kernels.host_kernels", lambda cache_dir: None)
    choice = "reference" if engine == "reference" else "fast"
    settings = Settings.load(device="cpu", dtype=dtype, engine=choice, kv_cache_bytes=64 << 20)
    made = load_engine(CATALOGUE["smollm2-135m-instruct"], settings, lambda stage, share: None)
    try:
        assert made.info.engine == engine
        prompt = await made.encode_chat([Message("user", "What is the capital of France?")])
        job = Job(prompt, SamplingParams(max_new_tokens=32, temperature=0))
        async with aclosing(made.stream([job])) as tokens:
            answer = [token async for token in tokens]
    finally:
        made.close()
    assert "".join(token.text for token in answer) == "The capital of France is Paris."
    assert answer[-1].finish_reason == "stop"
