"""The relevance of documents to queries: by a cross-encoder, or by the similarity of their vectors."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from handlers.context import Context
from handlers.encoding.encode import Encoded, encode
from handlers.encoding.inputs import Inputs, Item, Pair, chosen_prompt, encoder_info, prompt_for
from handlers.encoding.vectors import scores, similarity_of
from handlers.protocols import Engine
from handlers.schemas.relevance import RelevanceRequest
from runtime.encoder_types import EncoderInfo, Truncation
from runtime.errors import InvalidRequest
from runtime.types import TokenUsage


@dataclass(frozen=True, slots=True)
class Texts:
    """The texts of one field of a request.

    Args:
        texts: the texts.
        field: the field, for error messages.
        listed: whether the field is a list.
    """

    texts: Sequence[str]
    field: str
    listed: bool


@dataclass(frozen=True, slots=True)
class Relevance:
    """The scores of pairs, in the order of the documents, and the usage."""

    scores: list[float]
    usage: TokenUsage


async def relevance(
    request: RelevanceRequest,
    queries: Texts,
    documents: Texts,
    engine: Engine,
    ctx: Context,
    *,
    document_tokens: int | None = None,
) -> Relevance:
    """Return the relevance of each document to its query.

    Args:
        request: the validated request.
        queries: one query for all documents, or one for each.
        documents: the documents.
        engine: the model's engine, which is leased.
        ctx: the operation's context.
        document_tokens: maximum number of tokens of a document, which is cut to it; None for no such maximum. With it,
            there is one query.

    Raises:
        ModelCannotEncode: the model is neither a cross-encoder nor computes vectors.
        ServiceError: errors of ``encode``.
    """
    if engine.info.encoder is not None and "rerank" in engine.info.encoder.tasks:
        return await _by_cross_encoder(request, queries, documents, engine, ctx, document_tokens)
    return await _by_vectors(request, queries, documents, engine, ctx, document_tokens)


async def _by_cross_encoder(
    request: RelevanceRequest,
    queries: Texts,
    documents: Texts,
    engine: Engine,
    ctx: Context,
    document_tokens: int | None,
) -> Relevance:
    info = encoder_info(engine.info, "rerank")
    prompt = chosen_prompt(None, None, info) if request.instruction is None else request.instruction
    one_query = itertools.repeat(queries.texts[0]) if len(queries.texts) == 1 else queries.texts
    pairs: list[Item] = [Pair(*both) for both in zip(one_query, documents.texts, strict=False)]
    limit, truncate = request.cut(info.max_tokens)
    if document_tokens is not None:
        limit, truncate = await _room(engine, ctx, (queries.texts[0], ""), prompt, document_tokens, limit, queries)
    inputs = Inputs(pairs, documents.field, documents.listed, prompt, limit, truncate)
    encoded = await encode(engine, "classify", inputs, ctx, request.cache_control)
    activation = info.activation if request.use_activation else "none"
    return Relevance([scores([float(logits[0])], activation)[0] for logits in encoded.values], encoded.usage)


async def _by_vectors(
    request: RelevanceRequest,
    queries: Texts,
    documents: Texts,
    engine: Engine,
    ctx: Context,
    document_tokens: int | None,
) -> Relevance:
    info: EncoderInfo = encoder_info(engine.info, "embed")
    if request.instruction is not None:
        raise InvalidRequest(
            "instruction: this model compares vectors and takes no instruction; leave it out", param="instruction"
        )

    async def vectors(of: Texts, prompt: str, limit: int, truncate: Truncation) -> Encoded:
        inputs = Inputs(list(of.texts), of.field, of.listed, prompt, limit, truncate)
        return await encode(engine, "embed", inputs, ctx, request.cache_control)

    limit, truncate = request.cut(info.max_tokens)
    asked = await vectors(queries, prompt_for("query", info), limit, truncate)
    before = prompt_for("document", info)
    if document_tokens is not None:
        limit, truncate = await _room(engine, ctx, "", before, document_tokens, limit, documents)
    found = await vectors(documents, before, limit, truncate)
    compare = similarity_of(info.similarity)
    of_each = itertools.repeat(asked.values[0]) if len(asked.values) == 1 else asked.values
    return Relevance(
        [compare(query, document) for query, document in zip(of_each, found.values, strict=False)],
        asked.usage + found.usage,
    )


async def _room(
    engine: Engine,
    ctx: Context,
    empty: str | tuple[str, str],
    prompt: str,
    document_tokens: int,
    limit: int,
    texts: Texts,
) -> tuple[int, Truncation]:
    """Return the maximum number of tokens of an input whose document has a maximum, and that it is cut.

    Args:
        engine: the model's encoder.
        ctx: the operation's context.
        empty: the input with an empty document.
        prompt: the prompt or instruction.
        document_tokens: maximum number of tokens of the document.
        limit: maximum number of tokens of any input.
        texts: the texts with the field for error messages.
    """
    (tokens,) = await engine.tokenize_inputs([empty], prompt=prompt, background=ctx.background, field=texts.field)
    return min(limit, len(tokens.ids) + document_tokens), "end"
