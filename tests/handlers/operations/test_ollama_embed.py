"""handlers.operations.ollama_embed: vectors as Ollama's API returns them."""

from __future__ import annotations

import math
from typing import Any

import pytest

from handlers.operations import embeddings, ollama_embed
from handlers.schemas.ollama_objects import OllamaEmbeddingsResponse, OllamaEmbedResponse
from runtime.errors import InvalidRequest
from tests.support.fake_encoder import FakeEncoder
from tests.support.fakes import fake_context


async def _embed(**payload: Any) -> dict[str, Any]:
    answer = await ollama_embed.handle(payload, fake_context(FakeEncoder(token_length=len)))
    OllamaEmbedResponse.model_validate(answer, extra="forbid", strict=True)
    return answer


async def test_vectors() -> None:
    """One for each text, of length 1, and the number of all tokens."""
    answer = await _embed(input=["ab", "abc"], model="fake:latest")
    assert (answer["model"], len(answer["embeddings"]), answer["prompt_eval_count"]) == ("fake", 2, 9)
    assert all(math.isclose(math.hypot(*vector), 1, rel_tol=1e-5) for vector in answer["embeddings"])
    assert (await _embed(input="ab"))["embeddings"] == answer["embeddings"][:1]


async def test_without_a_text() -> None:
    """The model is loaded, and there is no vector."""
    for nothing in ("", []):
        assert (await _embed(input=nothing))["embeddings"] == []
    assert await ollama_embed.handle_one({}, fake_context(FakeEncoder())) == {"embedding": []}


async def test_one_vector() -> None:
    """The older route returns the model's own vector of one text."""
    ctx = fake_context(FakeEncoder(token_length=len))
    one = await ollama_embed.handle_one({"prompt": "ab"}, ctx)
    OllamaEmbeddingsResponse.model_validate(one, extra="forbid", strict=True)
    assert one["embedding"] == (await embeddings.handle({"input": "ab"}, ctx))["data"][0]["embedding"]


async def test_long_texts() -> None:
    """They are cut unless the request says otherwise; the error names the field."""
    long = "x" * 99
    assert len((await _embed(input=long))["embeddings"]) == 1
    with pytest.raises(InvalidRequest, match="input has 101 tokens"):
        await _embed(input=long, truncate=False)
