"""Plain data types of encoders: models that turn a text into a vector, class logits or a relevance.

This module imports neither torch nor pydantic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # takes a tenth of a second to import
    import numpy as np
    from numpy.typing import NDArray

EncoderTask = Literal["embed", "classify", "rerank"]
"""What an encoder computes: vectors; the logits of classes; or the relevance of a document to a query."""
Pooling = Literal["cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
"""How the vectors of a text's tokens become one, by sentence-transformers' names."""
Similarity = Literal["cosine", "dot", "euclidean", "manhattan"]
LogitActivation = Literal["sigmoid", "softmax", "none"]
Truncation = Literal["none", "start", "end"]
"""What is done with an input that is too long: an error, or the removal of its start or its end."""


@dataclass(frozen=True, slots=True)
class EncoderInput:
    """One tokenized input of an encoder.

    Args:
        ids: the token ids, special tokens included.
        types: the token types (BERT's segments), one for each id; empty if all are 0.
        unpooled: the number of tokens at the start that pooling leaves out (a prompt, in some models).
    """

    ids: tuple[int, ...]
    types: tuple[int, ...] = ()
    unpooled: int = 0


@dataclass(frozen=True, slots=True)
class EncoderOutput:
    """What an encoder made of one input.

    Args:
        tokens: the number of the input's tokens.
        values: the vector or the logits.
    """

    tokens: int
    values: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class EncoderInfo:
    """What an encoder computes, and how.

    Args:
        tasks: what the model computes; ``rerank`` for a cross-encoder, whose ``classify`` gives one logit per pair.
        width: dimensions of a vector; 0 if the model computes none.
        max_tokens: maximum number of tokens of one input, special tokens included.
        pooling: how the vectors of the tokens become one; several are concatenated.
        similarity: how the model's vectors are compared.
        normalized: whether the vectors have the length 1.
        dimensions: the fewer dimensions to which a vector may be cut (arXiv:2205.13147), ascending; empty if the model
            names none.
        prompts: texts to put before an input, by the name of the input's use, such as ``query``.
        default_prompt: the name of the prompt that applies if a request names none; "" for none.
        labels: the classes' names, in the order of their logits.
        activation: what turns the logits into scores.
    """

    tasks: tuple[EncoderTask, ...]
    width: int
    max_tokens: int
    pooling: tuple[Pooling, ...] = ("mean",)
    similarity: Similarity = "cosine"
    normalized: bool = False
    dimensions: tuple[int, ...] = ()
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str = ""
    labels: tuple[str, ...] = ()
    activation: LogitActivation = "none"
