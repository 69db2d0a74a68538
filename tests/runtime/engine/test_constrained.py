"""Generation under grammars, on every engine with real models."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from runtime.errors import InvalidRequest
from runtime.types import Grammar, Job, SamplingParams, Token
from tests.support.engines import Load, needs_kernels, without_kernels

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 10},
        "kind": {"enum": ["first kind", "second kind"]},
        "number": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "kind", "number"],
    "additionalProperties": False,
}
JSON = Grammar("json_schema", json.dumps(SCHEMA), "response_format")
GREEDY = SamplingParams(max_new_tokens=200, temperature=0, grammar=JSON)


@pytest.fixture(
    params=[pytest.param("native", marks=needs_kernels), "torch", "reference"],
)
def engine(request: pytest.FixtureRequest, tiny_llama: Path, load: Load, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The tiny Llama on each engine."""
    if request.param == "torch":
        without_kernels(monkeypatch)
    kind = "reference" if request.param == "reference" else "fast"
    # The number of threads only tells the native engine from PyTorch's among those that are loaded already.
    made = load(tiny_llama, dtype="float32", engine=kind, num_threads=2 if request.param == "torch" else 1)
    assert made.info.engine == request.param
    return made


async def answer(engine: Any, params: SamplingParams, prompt: str = "The licence of") -> list[list[Token]]:
    ids = await engine.encode(prompt)
    found: list[list[Token]] = [[] for _ in range(params.n)]
    async with aclosing(engine.stream([Job(ids, params)])) as stream:
        async for token in stream:
            found[token.sequence].append(token)
    return found


def text(tokens: list[Token]) -> str:
    return "".join(token.text for token in tokens)


async def test_answers_match(engine: Any) -> None:
    """Greedy and drawn, several of one prompt; each ends by itself."""
    for params in (GREEDY, replace(GREEDY, temperature=1.5, top_p=1.0, top_k=0, seed=3, n=3)):
        for tokens in await answer(engine, params):
            assert tokens[-1].finish_reason == "stop"
            jsonschema.validate(json.loads(text(tokens)), SCHEMA)


async def test_log_probabilities_and_penalties_change_nothing_about_it(engine: Any) -> None:
    """Every token has its own, forced ones too; the text is the one without them."""
    (plain,) = await answer(engine, GREEDY)
    (reported,) = await answer(engine, replace(GREEDY, logprobs=2))
    assert text(plain) == text(reported)
    assert all(token.logprob is not None and len(token.top_logprobs) == 2 for token in reported)
    (penalized,) = await answer(engine, replace(GREEDY, presence_penalty=1.0, frequency_penalty=0.5, min_new_tokens=5))
    jsonschema.validate(json.loads(text(penalized)), SCHEMA)


async def test_an_answer_that_is_cut_off_says_so(engine: Any) -> None:
    """At every length: among forced tokens, free ones, and just before the end."""
    (whole,) = await answer(engine, GREEDY)
    for length in range(1, len(whole)):
        (tokens,) = await answer(engine, replace(GREEDY, max_new_tokens=length))
        assert [token.id for token in tokens] == [token.id for token in whole[:length]]
        assert tokens[-1].finish_reason == "length"
        assert text(whole).startswith(text(tokens))


async def test_beside_free_texts(engine: Any) -> None:
    """Neither changes the other."""
    free = replace(GREEDY, grammar=None, max_new_tokens=20)
    regex = replace(GREEDY, grammar=Grammar("regex", "(yes|no|perhaps not)", "guided_regex"))
    alone = [await answer(engine, params) for params in (GREEDY, free, regex)]
    together = await asyncio.gather(*(answer(engine, params) for params in (GREEDY, free, regex)))
    assert [[[token.id for token in tokens] for tokens in found] for found in together] == [
        [[token.id for token in tokens] for tokens in found] for found in alone
    ]
    assert text(alone[2][0]) in ("yes", "no", "perhaps not")


async def test_a_wrong_grammar_is_refused_at_once(engine: Any) -> None:
    """By the name of its field; the engine goes on."""
    with pytest.raises(InvalidRequest, match=r"guided_regex: .*unclosed") as error:
        await answer(engine, replace(GREEDY, grammar=Grammar("regex", "[", "guided_regex")))
    assert error.value.param == "guided_regex"
    assert await answer(engine, GREEDY)


@needs_kernels
async def test_forced_tokens_share_a_step(tiny_llama: Path, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """The names of properties cost no steps of their own, nor does the end."""
    engine = load(tiny_llama, dtype="float32", engine="fast", num_threads=1)
    steps: list[int] = []
    step = engine._runner.step
    monkeypatch.setattr(engine._runner, "step", lambda rows: steps.append(len(rows)) or step(rows))
    (tokens,) = await answer(engine, replace(GREEDY, grammar=Grammar("json_schema", '{"const": "a constant"}', "f")))
    assert text(tokens) == '"a constant"'
    assert len(steps) == 1
    steps.clear()
    (tokens,) = await answer(engine, GREEDY)
    assert len(steps) < len(tokens) / 2
