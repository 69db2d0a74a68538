"""Cohere's client: its two versions of rerank."""

from __future__ import annotations

from typing import Any

import cohere
from cases import ANSWER, CORPUS, EMBEDDER, KEY, QUESTION, URL, WITH_KEYS, araises, main, raises
from cohere.errors import BadRequestError, NotFoundError, UnauthorizedError


def _client(kind: Any = cohere.ClientV2, url: str = URL) -> Any:
    return kind(api_key=KEY, base_url=url)


def case_rerank() -> None:
    answer = _client().rerank(model=EMBEDDER, query=QUESTION, documents=CORPUS, top_n=2)
    assert CORPUS[answer.results[0].index] == ANSWER
    assert len(answer.results) == 2
    assert answer.id
    assert answer.meta.tokens.input_tokens > 0


def case_rerank_first_version() -> None:
    documents = [{"text": text} for text in CORPUS]
    client = _client(cohere.Client)
    answer = client.rerank(model=EMBEDDER, query=QUESTION, documents=documents, return_documents=True)
    assert answer.results[0].document.text == ANSWER
    scores = [result.relevance_score for result in answer.results]
    assert scores == sorted(scores, reverse=True)


async def case_rerank_async() -> None:
    client = _client(cohere.AsyncClientV2)
    answer = await client.rerank(model=EMBEDDER, query=QUESTION, documents=CORPUS, max_tokens_per_doc=5)
    assert len(answer.results) == 4
    await araises(NotFoundError, client.rerank(model="nosuch", query=QUESTION, documents=CORPUS))


def case_errors() -> None:
    long = ["word " * 2000]
    error = raises(BadRequestError, lambda: _client().rerank(model=EMBEDDER, query="x", documents=long))
    assert "documents.0" in str(error.body)
    denied = _client(url=WITH_KEYS)
    raises(UnauthorizedError, lambda: denied.rerank(model=EMBEDDER, query="x", documents=CORPUS))


if __name__ == "__main__":
    main(globals())
