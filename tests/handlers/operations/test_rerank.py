"""handlers.operations.rerank and score: relevance by a cross-encoder and by vectors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from handlers.operations import rerank, score
from handlers.schemas.encoder_objects import RerankResponse, ScoreResponse
from runtime.errors import ContextLengthExceeded, InvalidRequest, ModelCannotEncode
from tests.support.fake_encoder import ENCODER, FakeEncoder
from tests.support.fakes import INFO, FakeEngine, fake_context

ASKED: dict[str, Any] = {"query": "abc", "documents": ["xyz", {"text": "cab"}, "axa"]}


def _embedder() -> FakeEncoder:
    return FakeEncoder(info=replace(INFO, encoder=replace(ENCODER, tasks=("embed",))))


async def _ranked(fields: dict[str, Any], engine: FakeEncoder | None = None) -> list[dict[str, Any]]:
    answer = await rerank.handle(ASKED | fields, fake_context(engine or FakeEncoder()))
    RerankResponse.model_validate(answer, strict=True)
    return answer["results"]  # type: ignore[no-any-return]


async def test_cross_encoder() -> None:
    """The documents come in the order of their scores, which are probabilities, with the members of all three APIs."""
    answer = await rerank.handle(ASKED, fake_context())
    RerankResponse.model_validate(answer, strict=True)
    assert [(one["index"], one["document"]["text"]) for one in answer["results"]] == [
        (1, "cab"),
        (2, "axa"),
        (0, "xyz"),
    ]
    assert answer["results"][2]["relevance_score"] == 0.5
    tokens = 3 * len("[abc]xyz]")
    assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    assert answer["meta"] == {"tokens": {"input_tokens": tokens, "output_tokens": 0}}
    assert (answer["id"], answer["model"]) == ("rerank-id1", "fake")


async def test_vectors() -> None:
    """A model that only embeds compares the query, with its prompt, with the documents."""
    engine = _embedder()
    results = await _ranked({"documents": ["xyz", "Q: abc", "x"]}, engine)
    assert (results[0]["index"], results[0]["relevance_score"]) == (1, pytest.approx(1))
    query, documents = engine.embedded
    assert ("".join(map(chr, query[0].ids[1:-1])), len(query), len(documents)) == ("Q: abc", 1, 3)
    assert results == sorted(results, key=lambda one: -one["relevance_score"])


async def test_what_is_returned() -> None:
    """The best ones, with their texts or without; equal scores keep the order of the request."""
    assert [one["index"] for one in await _ranked({"top_n": 2})] == [1, 2]
    assert all("document" not in one for one in await _ranked({"return_documents": False}))
    assert [one["index"] for one in await _ranked({"documents": ["x", "y", "z"]})] == [0, 1, 2]
    logits = await _ranked({"use_activation": False})
    assert [one["relevance_score"] for one in logits] == [3, 2, 0]


@pytest.mark.parametrize("engine", [FakeEncoder(), _embedder()], ids=["cross-encoder", "vectors"])
async def test_documents_are_cut(engine: FakeEncoder) -> None:
    """``max_tokens_per_doc`` counts the document's own tokens."""
    await _ranked({"documents": ["c" * 99, "c"], "max_tokens_per_doc": 2}, engine)
    inputs = (engine.classified or engine.embedded)[-1]
    assert [given.ids.count(ord("c")) for given in inputs] in ([2, 1], [3, 2])  # a pair has the query's, too


@pytest.mark.parametrize("engine", [FakeEncoder(), _embedder()], ids=["cross-encoder", "vectors"])
async def test_too_long(engine: FakeEncoder) -> None:
    """A document that is too long is named with both numbers, unless it is to be cut."""
    documents = {"documents": ["c", "c" * 99]}
    with pytest.raises(ContextLengthExceeded, match=r"100 tokens; documents\.1 has 1") as caught:
        await _ranked(documents, engine)
    assert caught.value.param == "documents.1"
    assert len(await _ranked(documents | {"truncate": "END"}, engine)) == 2


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"documents": []}, "documents"),
        ({"documents": ["a", 5]}, "documents.1"),
        ({"documents": [{"title": "a"}]}, "documents.0.text"),
        ({"top_n": 0}, "top_n"),
        ({"rank_fields": ["title"]}, "rank_fields"),
        ({"max_chunks_per_doc": 5}, "max_chunks_per_doc"),
        ({"query": None}, "query"),
    ],
)
async def test_wrong_requests(fields: dict[str, Any], param: str) -> None:
    """Each is refused by name."""
    with pytest.raises(InvalidRequest) as caught:
        await _ranked(fields)
    assert caught.value.param == param


async def test_instruction() -> None:
    """It is for models that take one."""
    with pytest.raises(InvalidRequest, match=r"^instruction: "):
        await _ranked({"instruction": "x"}, _embedder())


async def test_model_that_only_generates() -> None:
    """It says what it does."""
    with pytest.raises(ModelCannotEncode):
        await rerank.handle(ASKED, fake_context(FakeEngine()))


@pytest.mark.parametrize(
    ("fields", "scores"),
    [
        ({"text_1": "abc", "text_2": "cab"}, [3]),
        ({"text_1": ["abc"], "text_2": ["cab", "xyz"]}, [3, 0]),
        ({"queries": ["a", "x"], "documents": ["ab", "xx"]}, [1, 2]),
    ],
)
async def test_scores(fields: dict[str, Any], scores: list[float]) -> None:
    """One query for all documents, or one for each, by either pair of names."""
    answer = await score.handle(fields | {"use_activation": False}, fake_context())
    ScoreResponse.model_validate(answer, strict=True)
    assert [(one["index"], one["score"]) for one in answer["data"]] == list(enumerate(scores))
    assert (answer["id"], answer["created"]) == ("score-id1", 1_700_000_000)


async def test_scores_by_vectors() -> None:
    """Each document with its own query."""
    answer = await score.handle({"text_1": ["a", "b"], "text_2": ["Q: a", "Q: a"]}, fake_context(_embedder()))
    assert answer["data"][0]["score"] != answer["data"][1]["score"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"text_1": ["a", "b"], "text_2": ["a"]}, "text_1"),
        ({"queries": ["a", "b"], "documents": ["a", "b", "c"]}, "queries"),
        ({"text_1": "a"}, None),
        ({"text_1": "a", "documents": "a"}, None),
        ({"text_1": "a", "text_2": []}, "text_2"),
    ],
)
async def test_wrong_pairs(fields: dict[str, Any], param: str | None) -> None:
    """Numbers that do not fit are refused, and so are mixed names."""
    with pytest.raises(InvalidRequest) as caught:
        await score.handle(fields, fake_context())
    assert caught.value.param == param
