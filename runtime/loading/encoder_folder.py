"""Reads what an encoder does with its tokens' states from a checkpoint's folder: that of sentence-transformers
(``modules.json`` and what it names), or a classification model of transformers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from runtime.encoder_types import EncoderTask, LogitActivation, Pooling, Similarity
from runtime.errors import ModelUnavailable
from runtime.loading.encoder_heads import classification_stages
from runtime.model.catalogue import ModelSpec
from runtime.model.config import DecoderConfig, UnsupportedDecoder
from runtime.model.encoder_config import EncoderConfig, EncoderStage, PairTemplate, StageActivation
from runtime.model.families import FAMILIES

MODULES = "modules.json"
_OLD_POOLING: Mapping[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_ACTIVATIONS: Mapping[str, StageActivation] = {
    "Identity": "none",
    "Tanh": "tanh",
    "ReLU": "relu",
    "GELU": "gelu",
    "Sigmoid": "sigmoid",
    "SiLU": "silu",
}
_RERANKER = "qwen3-reranker"
YES_OR_NO = PairTemplate(  # that of Qwen3-Reranker's model card
    prefix="<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n',
    text="<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}",
    suffix="<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    instruction="Given a web search query, retrieve relevant passages that answer the query",
)


_LONGEST = 1 << 15  # tokens of an input: its activations are in memory at once, and a step has at most twice as many


@dataclass(frozen=True, slots=True)
class EncoderShape:
    """The sizes of a model that its encoder's description depends on.

    Args:
        hidden: width of a token's state.
        context: number of positions.
        limit: the tokenizer's own limit in tokens; None for none.
    """

    hidden: int
    context: int
    limit: int | None


@dataclass(frozen=True, slots=True)
class EncoderFolder:
    """An encoder's description, and where the tensors of its stages are.

    Args:
        config: the description.
        tensors: for each stage with tensors, by its index: the folder (None for the checkpoint itself) and the name of
            the tensors there, without ``.weight``.
        logit_tokens: for a decoder that answers yes or no, the ids of these tokens: its logit, the only stage, is the
            difference of theirs, or the first one's.
        logit_matrix: the tensor whose rows these ids count; None for the output head.
    """

    config: EncoderConfig
    tensors: Mapping[int, tuple[Path | None, str]]
    logit_tokens: tuple[int, ...] = ()
    logit_matrix: str | None = None


def yes_or_no(hidden: int, limit: int) -> EncoderConfig:
    """Return what a decoder computes that answers whether a document meets a query (Qwen3-Reranker): one logit.

    Args:
        hidden: width of a token's state.
        limit: maximum number of tokens of an input.
    """
    return EncoderConfig(
        tasks=("rerank",),
        max_tokens=limit,
        pooling=("lasttoken",),
        stages=(EncoderStage("dense", hidden, 1),),
        labels=("relevance",),
        activation="sigmoid",
        pair=YES_OR_NO,
    )


def encoder_at(spec: ModelSpec, folder: Path) -> bool:
    """Return whether a folder has an encoder's checkpoint; False also for one whose configuration is damaged.

    Args:
        spec: the model.
        folder: the checkpoint's folder.
    """
    try:
        config = _json_if(folder / "config.json")
        return is_encoder(folder, config) or named_reranker(spec, folder, config)
    except (OSError, ValueError):
        return False


def named_reranker(spec: ModelSpec, folder: Path, config: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint is Qwen3-Reranker without a module that says so: only its name tells it from a model
    that generates, for people and for llama.cpp (``conversion/qwen.py``), too.

    Arguments as for ``is_encoder``.

    Args:
        spec: the model.
    """
    plain = config.get("model_type") == "qwen3" and not (folder / MODULES).is_file()
    return plain and "Qwen3ForCausalLM" in (config.get("architectures") or []) and _RERANKER in spec.id.lower()


def is_encoder(folder: Path, config: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint is that of an encoder and not of a model that generates.

    Args:
        folder: the checkpoint's folder.
        config: the content of its ``config.json``.
    """
    classes = [str(name) for name in config.get("architectures") or []]
    return (
        (folder / MODULES).is_file()
        or (
            config.get("model_type") not in FAMILIES
            and any(re.search(r"(Model|ForMaskedLM|ForSequenceClassification)$", name) for name in classes)
        )
        or any(name.endswith("ForSequenceClassification") for name in classes)
        or bool(config.get("use_bidirectional_attention"))
    )


def read_encoder_folder(
    spec: ModelSpec, folder: Path, config: Mapping[str, Any], decoder: DecoderConfig | None, shape: EncoderShape
) -> EncoderFolder:
    """Read an encoder's description.

    Args:
        spec: the model, for error messages.
        folder: the checkpoint's folder.
        config: the content of its ``config.json``.
        decoder: the model's configuration; None if transformers computes, also a classification model's logits.
        shape: the model's width and limits.

    Raises:
        UnsupportedDecoder: a module is of a kind that is not supported here.
        ModelUnavailable: a file is damaged or missing.
    """
    try:
        if (folder / MODULES).is_file():
            return _sentence_transformers(folder, config, shape)
        limit = input_limit(shape.context, shape.limit)
        if any(str(name).endswith("ForSequenceClassification") for name in config.get("architectures") or []):
            return _classifier(config, decoder, limit)
        return EncoderFolder(EncoderConfig(("embed",), limit, ("mean",)), {})
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelUnavailable(f"the files of the encoder {spec.id} are incomplete or damaged ({error!r})") from error


def _sentence_transformers(folder: Path, config: Mapping[str, Any], shape: EncoderShape) -> EncoderFolder:
    modules = _json(folder / MODULES)
    own = _json_if(folder / "config_sentence_transformers.json")
    transformer = next(_json_if(file) for file in _transformer_files(folder) if file.is_file() or file.name == "none")
    limit = input_limit(shape.context, transformer.get("max_seq_length") or shape.limit)
    pooling: tuple[Pooling, ...] = ()
    pool_prompt = True
    logit_tokens: tuple[int, ...] = ()
    stages: list[EncoderStage] = []
    tensors: dict[int, tuple[Path | None, str]] = {}
    width = 0
    for module in modules:
        kind = str(module["type"]).rpartition(".")[2]
        path = folder / str(module.get("path") or "")
        options = {} if kind in ("Transformer", "Normalize") else _json(path / "config.json")
        if kind == "Transformer":
            continue
        if kind == "Pooling":
            pooling, pool_prompt = _pooling(options), bool(options.get("include_prompt", True))
            width = shape.hidden * len(pooling)
        elif kind == "Dense":
            stages.append(_dense(options))
            tensors[len(stages) - 1] = (path, "linear")
        elif kind == "LayerNorm":
            stages.append(EncoderStage("norm", options["dimension"], options["dimension"], bias=True))
            tensors[len(stages) - 1] = (path, "norm")
        elif kind == "Normalize":
            stages.append(EncoderStage("normalize", width, width))
        elif kind == "LogitScore":
            found = [options["true_token_id"], options.get("false_token_id")]
            logit_tokens = tuple(int(token) for token in found if token is not None)
        else:
            raise UnsupportedDecoder(f"a sentence-transformers module {kind}")
        if stages:
            if stages[-1].inputs != width:
                raise ValueError(f"a module {kind} of width {stages[-1].inputs} behind one of {width}")
            width = stages[-1].outputs
    prompts = tuple((str(name), str(text)) for name, text in (own.get("prompts") or {}).items())
    default_prompt = str(own.get("default_prompt_name") or "")
    if logit_tokens:
        encoder = replace(yes_or_no(shape.hidden, limit), prompts=prompts, default_prompt=default_prompt)
        return EncoderFolder(encoder, tensors, logit_tokens)
    if not pooling:
        raise UnsupportedDecoder("a sentence-transformers folder without pooling")
    similarity: Similarity = own.get("similarity_fn_name") or "cosine"
    if similarity not in get_args(Similarity):
        raise UnsupportedDecoder(f"similarity {similarity}")
    return EncoderFolder(
        EncoderConfig(
            tasks=("embed",),
            max_tokens=limit,
            pooling=pooling,
            stages=tuple(stages),
            pool_prompt=pool_prompt,
            lower_case=bool(transformer.get("do_lower_case")),
            similarity=similarity,
            dimensions=_dimensions({**config, **own}, width),
            prompts=prompts,
            default_prompt=default_prompt,
        ),
        tensors,
    )


def _transformer_files(folder: Path) -> list[Path]:
    """Return the files that may have the options of the first module, in the order of sentence-transformers."""
    kinds = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
    return [*(folder / f"sentence_{kind}_config.json" for kind in kinds), Path("none")]


def _pooling(options: Mapping[str, Any]) -> tuple[Pooling, ...]:
    given = options.get("pooling_mode")
    modes: list[Any] = [given] if isinstance(given, str) else list(given or ())
    modes = modes or [mode for option, mode in _OLD_POOLING.items() if options.get(option)] or ["mean"]
    for mode in modes:
        if mode not in get_args(Pooling):
            raise UnsupportedDecoder(f"pooling {mode}")
    return tuple(modes)


def _dense(options: Mapping[str, Any]) -> EncoderStage:
    name = str(options.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")[2]
    if name not in _ACTIVATIONS:
        raise UnsupportedDecoder(f"activation {name} of a dense module")
    where = (options.get("module_input_name") or "sentence_embedding", options.get("module_output_name"))
    if options.get("use_residual") or where[0] != "sentence_embedding" or where[1] not in (None, "sentence_embedding"):
        raise UnsupportedDecoder("a dense module with a residual connection or of tokens")
    bias = bool(options.get("bias", True))
    return EncoderStage("dense", int(options["in_features"]), int(options["out_features"]), bias, _ACTIVATIONS[name])


def _dimensions(options: Mapping[str, Any], width: int) -> tuple[int, ...]:
    """Return the dimensions to which vectors may be cut, as ``matryoshka_dimensions`` or ``is_matryoshka`` says."""
    if given := options.get("matryoshka_dimensions"):
        return tuple(sorted(int(size) for size in given if 0 < int(size) < width))
    return tuple(range(1, width)) if options.get("is_matryoshka") else ()


def _classifier(config: Mapping[str, Any], decoder: DecoderConfig | None, limit: int) -> EncoderFolder:
    """Read a classification model; one with a single label is a cross-encoder."""
    names = {int(index): str(label) for index, label in (config.get("id2label") or {}).items()}
    count = int(config.get("num_labels") or len(names) or 2)
    labels = tuple(names.get(index, f"LABEL_{index}") for index in range(count))
    pooling, heads = classification_stages(config, decoder, count) if decoder else ("cls", [])
    task: EncoderTask = "rerank" if count == 1 else "classify"
    encoder = EncoderConfig(
        tasks=(task, "classify") if count == 1 else (task,),
        max_tokens=limit,
        pooling=(pooling,),
        stages=tuple(stage for stage, _ in heads),
        labels=labels,
        activation=_label_activation(config, count),
    )
    return EncoderFolder(encoder, {index: (None, name) for index, (_, name) in enumerate(heads)})


def _label_activation(config: Mapping[str, Any], count: int) -> LogitActivation:
    """Return what turns logits into scores: as sentence-transformers has it for a cross-encoder, else transformers."""
    named = (config.get("sentence_transformers") or {}).get("activation_fn")
    named = named or config.get("sbert_ce_default_activation_function")
    if named and str(named).endswith("Identity"):
        return "none"
    if named and str(named).endswith("Sigmoid"):
        return "sigmoid"
    return "sigmoid" if count == 1 or config.get("problem_type") == "multi_label_classification" else "softmax"


def input_limit(context: int, limit: int | None = None) -> int:
    """Return the maximum number of tokens of an input.

    Args:
        context: number of positions.
        limit: the tokenizer's own limit; None for none.
    """
    return min(context, _LONGEST, int(limit)) if limit else min(context, _LONGEST)


def _json(file: Path) -> Any:
    return json.loads(file.read_bytes())


def _json_if(file: Path) -> Mapping[str, Any]:
    found = _json(file) if file.is_file() else {}
    return found if isinstance(found, dict) else {}
