"""Response models of the operations that compute vectors, relevance and classes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from handlers.schemas.responses import CacheReport, LazyModel


class EncoderUsage(LazyModel):
    """The number of tokens of all inputs, and the use of the response cache."""

    prompt_tokens: int
    total_tokens: int
    cache: CacheReport | None = Field(
        None,
        description="Present if the response cache is enabled (RESPONSE_CACHE), which keeps each input's result by "
        "itself; hit: those of all inputs were cached. The age is the oldest one's; only a single input has a key.",
    )


class EmbeddingObject(LazyModel):
    """The vector of one input."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str = Field(
        description="The numbers, with the nine digits that identify a float32; or their bytes in base64, in "
        "little-endian order."
    )


class EmbeddingsResponse(LazyModel):
    """OpenAI's list of embeddings, in the order of the inputs."""

    object: Literal["list"] = "list"
    data: list[EmbeddingObject]
    model: str
    usage: EncoderUsage


class RankedText(LazyModel):
    """A document's text."""

    text: str


class RankedDocument(LazyModel):
    """A document with its relevance."""

    index: int = Field(description="The document's index in the request.")
    relevance_score: float = Field(
        description="From 0 to 1 with a cross-encoder; with a model for embeddings, the similarity of the vectors."
    )
    document: RankedText | None = Field(None, description="Absent if return_documents is false.")


class RerankTokens(LazyModel):
    """Numbers of tokens, by Cohere's names."""

    input_tokens: int
    output_tokens: int


class RerankMeta(LazyModel):
    """Cohere's metadata."""

    tokens: RerankTokens


class RerankResponse(LazyModel):
    """The ranked documents, the most relevant first, with the members of Cohere's, Jina's and vLLM's responses."""

    id: str
    object: Literal["list"] = "list"
    model: str
    results: list[RankedDocument]
    usage: EncoderUsage
    meta: RerankMeta


class PairScore(LazyModel):
    """The score of one pair."""

    index: int
    object: Literal["score"] = "score"
    score: float = Field(
        description="From 0 to 1 with a cross-encoder; with a model for embeddings, the similarity of the vectors."
    )


class ScoreResponse(LazyModel):
    """vLLM's list of scores, in the order of the pairs."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[PairScore]
    usage: EncoderUsage


class TextClass(LazyModel):
    """The class of one input."""

    index: int
    label: str = Field(description="The class with the highest score.")
    probs: list[float] = Field(description="The scores of all classes, in the order of the model's labels.")
    num_classes: int


class ClassifyResponse(LazyModel):
    """vLLM's list of classes, in the order of the inputs."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[TextClass]
    usage: EncoderUsage
