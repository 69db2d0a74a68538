"""Reads what the encoder of a GGUF file does with its tokens' states: pooling, or a classification head.

The kinds of pooling and the heads' tensors are llama.cpp's (``build_pooling`` in ``llama-graph.cpp``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from runtime.encoder_types import Pooling
from runtime.loading.encoder_folder import YES_OR_NO, EncoderFolder, input_limit, yes_or_no
from runtime.model.config import DecoderConfig, UnsupportedDecoder
from runtime.model.encoder_config import EncoderConfig, EncoderStage
from runtime.model.families import FAMILIES
from runtime.model.gguf_header import GGUFHeader

HEAD_TENSORS = (r"cls\.",)
"""Patterns of the tensors of a classification head, which are those of stages and not of the decoder."""

_POOLING: Mapping[int, Pooling] = {0: "mean", 1: "mean", 2: "cls", 3: "lasttoken"}
"""Kinds of pooling by llama.cpp's ``llama_pooling_type``; a file without one and without a head gets the mean."""
_RANK = 4  # its number for a classification head
_OUTPUT = "cls.output.weight"
_QUESTION = "tokenizer.chat_template.rerank"


def gguf_encoder(header: GGUFHeader, family: str, decoder: DecoderConfig) -> EncoderFolder:
    """Return what the encoder of a file computes.

    Args:
        header: the file's header.
        family: the ``model_type`` of its family.
        decoder: the model's configuration.

    Raises:
        UnsupportedDecoder: pooling or head are not supported; the message names the key or tensor.
    """
    pooling = header.of_model("pooling_type")
    limit, hidden = input_limit(decoder.context_length), decoder.hidden
    if pooling == _RANK or (pooling is None and _OUTPUT in header.tensors):
        if _OUTPUT not in header.tensors:
            raise UnsupportedDecoder(f"pooling_type {_RANK} without {_OUTPUT}")
        return _answering(header, limit, hidden) if family in FAMILIES else _classifier(header, limit, hidden)
    if pooling is not None and pooling not in _POOLING:
        raise UnsupportedDecoder(f"pooling_type {pooling}")
    normalize = EncoderStage("normalize", hidden, hidden)  # as llama-server does
    return EncoderFolder(EncoderConfig(("embed",), limit, (_POOLING[pooling or 0],), (normalize,)), {})


def _classifier(header: GGUFHeader, limit: int, hidden: int) -> EncoderFolder:
    """Read a classification head; one with a single class is a cross-encoder."""
    count = header.rows(_OUTPUT)
    names = [str(name) for name in header.of_model("classifier.output_labels", ())]
    if len(names) not in (0, count):
        raise UnsupportedDecoder(f"{len(names)} classifier.output_labels and {count} rows of {_OUTPUT}")
    stages = [EncoderStage("dense", hidden, count, "cls.output.bias" in header.tensors)]
    tensors: list[tuple[Path | None, str]] = [(None, "cls.output")]
    if "cls.weight" in header.tensors:
        stages.insert(0, EncoderStage("dense", hidden, hidden, "cls.bias" in header.tensors, "tanh"))
        tensors.insert(0, (None, "cls"))
    encoder = EncoderConfig(
        tasks=("rerank", "classify") if count == 1 else ("classify",),
        max_tokens=limit,
        pooling=("cls",),
        stages=tuple(stages),
        labels=tuple(names) or tuple(f"LABEL_{index}" for index in range(count)),
        activation="sigmoid" if count == 1 else "softmax",
    )
    return EncoderFolder(encoder, dict(enumerate(tensors)))


def _answering(header: GGUFHeader, limit: int, hidden: int) -> EncoderFolder:
    """Read a decoder that answers yes or no: the head has the rows of these two tokens, and the file the question."""
    labels = header.of_model("classifier.output_labels", ())
    if list(labels) != ["yes", "no"]:
        raise UnsupportedDecoder(f"the classification head of a decoder with the classes {list(labels)}")
    text = YES_OR_NO.text.replace("{instruction}", YES_OR_NO.instruction)
    if header.metadata.get(_QUESTION) != YES_OR_NO.prefix + text + YES_OR_NO.suffix:
        raise UnsupportedDecoder(f"another {_QUESTION} than that of Qwen3-Reranker")
    return EncoderFolder(yes_or_no(hidden, limit), {}, (0, 1), _OUTPUT)
