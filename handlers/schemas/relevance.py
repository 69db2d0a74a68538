"""The requests for relevance and classes: documents ranked for a query, scores of pairs of texts, classes of texts."""

from __future__ import annotations

from types import MappingProxyType
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from handlers.schemas.encoder_fields import MAX_INPUTS, PRIORITY, SPECIAL_TOKENS, EncoderRequest
from handlers.schemas.fields import AnyText, Prompts
from handlers.schemas.strict import Strict
from handlers.schemas.unsupported import Unsupported


class DocumentText(Strict):
    """A document as an object."""

    text: AnyText = Field(description="The document's text.")


def _document_kind(value: object) -> str | None:
    return "<text>" if isinstance(value, str) else "<object>" if isinstance(value, dict) else None


Document = Annotated[
    Annotated[AnyText, Tag("<text>")] | Annotated[DocumentText, Tag("<object>")],
    Discriminator(
        _document_kind,
        custom_error_type="document",
        custom_error_message="input should be a text or an object with a text",
    ),
]


def _listed(value: object) -> object:
    if not isinstance(value, str | list):
        raise PydanticCustomError("one_or_many", "input should be a text or a list of texts")
    return [value] if isinstance(value, str) else value


_TEXT: dict[str, Any] = {"type": "string"}
Texts = Annotated[
    list[AnyText],
    BeforeValidator(_listed),
    Field(min_length=1, max_length=MAX_INPUTS),
    WithJsonSchema({"anyOf": [_TEXT, {"type": "array", "items": _TEXT, "minItems": 1, "maxItems": MAX_INPUTS}]}),
]
"""A text or a list of texts; validation makes it a list."""


class RelevanceRequest(EncoderRequest):
    """A request about the relevance of documents to queries."""

    instruction: AnyText | None = Field(
        None,
        description="What relevance means, for a model that takes an instruction; the model's own if left out.",
    )
    use_activation: bool = Field(
        True, description="Whether a cross-encoder's scores are from 0 to 1; otherwise they are its logits."
    )


class RerankRequest(RelevanceRequest):
    """Rank documents by their relevance to a query, with the fields of Cohere's, Jina's and vLLM's APIs."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "query": "How do bees find flowers?",
                    "documents": ["Rivers carry sand.", "Bees see ultraviolet light."],
                    "top_n": 1,
                }
            ]
        }
    )
    unsupported = MappingProxyType(
        {
            "rank_fields": Unsupported("only the text of a document is ranked", (["text"],)),
            "max_chunks_per_doc": Unsupported("documents are not split by this server", (1,)),
            "max_tokens_per_query": Unsupported("queries are not cut by this server", (0,)),
            "relevant_spans": Unsupported("relevant spans are not found by this server"),
            "add_special_tokens": SPECIAL_TOKENS,
            "priority": PRIORITY,
        }
    )

    query: AnyText = Field(description="What is searched for.")
    documents: list[Document] = Field(
        min_length=1, max_length=MAX_INPUTS, description="The documents: texts, or objects with a text."
    )
    top_n: int | None = Field(
        None, ge=1, le=10_000_000, strict=False, description="Return this number of documents only, the best ones."
    )
    return_documents: bool = Field(True, description="Whether the results have the texts of the documents.")
    max_tokens_per_doc: int | None = Field(
        None,
        ge=1,
        le=10_000_000,
        strict=False,
        description="Cut documents to this number of tokens.",
    )

    @property
    def texts(self) -> list[str]:
        """The documents' texts."""
        return [document if isinstance(document, str) else document.text for document in self.documents]


def _pair(one: str, other: str, unused: tuple[str, str]) -> dict[str, Any]:
    given = {name: {"type": ["string", "array"]} for name in (one, other)}
    return {"required": [one, other], "properties": given | {name: {"type": "null"} for name in unused}}


_NAMES = (("text_1", "text_2"), ("queries", "documents"))


class ScoreRequest(RelevanceRequest):
    """Score pairs of a query and a document: vLLM's score API."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"text_1": "How do bees find flowers?", "text_2": ["Rivers carry sand.", "Bees see ultraviolet light."]}
            ],
            "oneOf": [_pair(*_NAMES[0], _NAMES[1]), _pair(*_NAMES[1], _NAMES[0])],
        }
    )
    unsupported = MappingProxyType({"add_special_tokens": SPECIAL_TOKENS, "priority": PRIORITY})

    text_1: Texts | None = Field(None, description="The query, or as many queries as documents.")
    text_2: Texts | None = Field(None, description="The document or documents.")
    queries: Texts | None = Field(None, description="Another name of text_1.")
    documents: Texts | None = Field(None, description="Another name of text_2.")

    @model_validator(mode="after")
    def _two_names(self) -> ScoreRequest:
        given = [name for names in _NAMES for name in names if getattr(self, name) is not None]
        if tuple(given) not in _NAMES:
            raise PydanticCustomError("two_names", "give text_1 and text_2, or queries and documents")
        return self

    @property
    def names(self) -> tuple[str, str]:
        """The names of the two fields that the request has."""
        return _NAMES[self.text_1 is None]


class ClassifyRequest(EncoderRequest):
    """Classify texts: vLLM's classification API."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"input": ["What a day!", "My screen is broken."]}]})
    unsupported = MappingProxyType({"add_special_tokens": SPECIAL_TOKENS, "priority": PRIORITY})

    input: Prompts = Field(description="The text to classify, its token ids, or a list of either.")
    use_activation: bool = Field(
        True, description="Whether the scores are probabilities; otherwise they are the model's logits."
    )
