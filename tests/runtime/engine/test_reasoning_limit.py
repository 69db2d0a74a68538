"""The limit on reasoning, on every engine with a real model."""

from __future__ import annotations

from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from runtime.types import Grammar, Job, ReasoningLimit, SamplingParams
from tests.support.engines import Load, needs_kernels, without_kernels

TOKENS, END = 12, 1  # END is a control token of the tiny Llama, here the end of reasoning
LIMITED = Grammar("lark", f"start: TEXT <[{END}]> TEXT\nTEXT: /(?s:.*)/", "f", (), ReasoningLimit(TOKENS, None, END))


async def generated(engine: Any, seed: int) -> list[int]:
    """The ids of an answer under the limit."""
    prompt = await engine.encode("The licence, the licence, the licence of")
    params = SamplingParams(
        max_new_tokens=40, temperature=0.3 * seed, seed=seed, grammar=LIMITED, logit_bias=((2, -100),)
    )
    async with aclosing(engine.stream([Job(prompt, params)])) as stream:
        return [token.id async for token in stream]


@pytest.mark.parametrize("kind", [pytest.param("native", marks=needs_kernels), "torch", "reference"])
async def test_end_is_forced(kind: str, tiny_llama: Path, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the limit comes the end of reasoning, if it has not come before; drafts change nothing."""
    if kind == "torch":
        without_kernels(monkeypatch)
    options: dict[str, Any] = {"dtype": "float32", "num_threads": 1}
    options["engine"] = "reference" if kind == "reference" else "fast"
    plain, drafting = (load(tiny_llama, speculate_tokens=drafts, **options) for drafts in (0, 8))
    for seed in range(4):
        ids = await generated(plain, seed)
        assert END in ids[: TOKENS + 4]  # a character that is incomplete at the limit is completed
        assert await generated(drafting, seed) == ids
