"""Rows of unequal length in the reference engine: each gets what it gets alone, whatever kind of model it is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers

from runtime.engine.pytorch.padding import batching, left_padded
from runtime.engine.reference import ReferenceEngine
from runtime.loading.checkpoint_tokenizer import wrap
from runtime.model.loaded import Loaded
from runtime.telemetry.metrics import Metrics
from runtime.types import Job, SamplingParams, Token
from tests.support.fakes import INFO
from tests.support.models import train_tokenizer

SCALED = 32  # tokens, behind which the rotary frequencies of the models that scale them change
SHAPE: dict[str, Any] = {
    "vocab_size": 600,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    "max_position_embeddings": 256,
    "pad_token_id": None,
}


def _rwkv() -> Any:
    config = transformers.RwkvConfig(
        vocab_size=600, hidden_size=64, attention_hidden_size=64, num_hidden_layers=2, intermediate_size=128
    )
    return transformers.RwkvForCausalLM(config)


def _mamba() -> Any:
    config = transformers.MambaConfig(
        vocab_size=600, hidden_size=64, state_size=8, num_hidden_layers=2, initializer_range=0.3
    )
    return transformers.MambaForCausalLM(config)


def _phi3() -> Any:
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [8.0] * 8}
    rope["original_max_position_embeddings"] = SCALED
    return transformers.Phi3ForCausalLM(
        transformers.Phi3Config(**SHAPE, rope_parameters=rope, original_max_position_embeddings=SCALED)
    )


def _dynamic() -> Any:
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 8.0}
    shape = SHAPE | {"max_position_embeddings": SCALED}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape, rope_parameters=rope))


def _lfm2() -> Any:
    return transformers.Lfm2ForCausalLM(transformers.Lfm2Config(**SHAPE, layer_types=["conv", "full_attention"]))


def _llama() -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE))


MODELS: dict[str, Callable[[], Any]] = {
    "rwkv": _rwkv,
    "mamba": _mamba,
    "phi3": _phi3,
    "dynamic": _dynamic,
    "lfm2": _lfm2,
    "llama": _llama,
}


@pytest.fixture
def build() -> Iterator[Callable[[str], ReferenceEngine]]:
    """Makes engines on seeded random models, and ends them."""
    made: list[ReferenceEngine] = []

    def build(kind: str) -> ReferenceEngine:
        torch.manual_seed(5)
        loaded = Loaded(MODELS[kind]().eval(), wrap(train_tokenizer()), "cpu", "float32", None)
        made.append(ReferenceEngine(loaded, replace(INFO, vocabulary_size=600), metrics=Metrics().model("m")))
        return made[-1]

    yield build
    for engine in made:
        engine.close()


def run(engine: ReferenceEngine, prompts: Sequence[Sequence[int]]) -> list[list[Token]]:
    """Each prompt's tokens, all prompts in one request."""

    async def rows() -> list[list[Token]]:
        params = SamplingParams(max_new_tokens=8, temperature=0, logprobs=0)
        found: list[list[Token]] = [[] for _ in prompts]
        async with aclosing(engine.stream([Job(tuple(prompt), params) for prompt in prompts])) as tokens:
            async for token in tokens:
                found[token.sequence].append(token)
        return found

    return asyncio.run(rows())


PROMPTS = [range(10, 14), range(40, 40 + SCALED - 4), range(100, 100 + SCALED + 10), range(200, 204)]


@pytest.mark.parametrize("kind", MODELS)
def test_rows_of_unequal_length_get_what_each_gets_alone(
    kind: str, build: Callable[[str], ReferenceEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens and log-probabilities, beside longer and shorter rows. Where padding changes nothing they share a batch,
    else those of equal length do, or none where a batch as such changes answers.
    """
    engine = build(kind)
    batches: list[int] = []
    together = ReferenceEngine._generate_together

    def counted(self: ReferenceEngine, rows: list[Any], deliver: Any) -> None:
        batches.append(len(rows))
        together(self, rows, deliver)

    monkeypatch.setattr(ReferenceEngine, "_generate_together", counted)
    found = run(engine, PROMPTS)
    assert batches == {"llama": [4], "lfm2": [4], "rwkv": [1, 1, 1, 1]}.get(kind, [2, 1, 1])
    for prompt, row in zip(PROMPTS, found, strict=True):
        alone = run(engine, [prompt])[0]
        assert [token.id for token in row] == [token.id for token in alone]
        assert [token.logprob for token in row] == pytest.approx([token.logprob for token in alone], abs=1e-3)


@pytest.mark.parametrize("kind", ["phi3", "dynamic"])
def test_rotary_frequencies_do_not_depend_on_earlier_texts(kind: str, build: Callable[[str], ReferenceEngine]) -> None:
    """A text that is long enough for scaled frequencies gets its own, whatever text was the longest before it."""
    fresh, used = build(kind), build(kind)
    run(used, [range(100, 300)])
    prompt = range(40, 40 + SCALED + 2)
    assert run(used, [prompt]) == run(fresh, [prompt])


def test_a_model_that_sees_padding_is_found_by_trying() -> None:
    """Whatever its code looks like: here one that drops its mask."""
    model = _llama().eval()
    plain = model.model.forward
    assert batching(model, range(10, 30), 0) == "padded"
    model.model.forward = lambda *args, attention_mask, **others: plain(*args, **others)
    assert batching(model, range(10, 30), 0) == "equal"


def test_left_padded() -> None:
    """The last column is every row's last token."""
    ids, mask = left_padded([[5], [6, 7, 8]], 9)
    assert ids.tolist() == [[9, 9, 5], [6, 7, 8]]
    assert mask.tolist() == [[0, 0, 1], [1, 1, 1]]
