"""The classification heads of transformers' models, as stages behind pooling; and the stages' tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.encoder_types import Pooling
from runtime.loading.safetensors_source import SafetensorsSource
from runtime.loading.snapshot_writer import Weight
from runtime.loading.stored_tensors import StoredTensors, stored_shapes
from runtime.loading.tensor_source import TensorSource
from runtime.model.checkpoint_layout import CheckpointLayout
from runtime.model.config import DecoderConfig, UnsupportedDecoder
from runtime.model.encoder_config import EncoderConfig, EncoderStage, StageActivation
from runtime.model.load_errors import mismatched, named

Array = NDArray[np.float32]


def classification_stages(
    config: Mapping[str, Any], decoder: DecoderConfig, labels: int
) -> tuple[Pooling, list[tuple[EncoderStage, str]]]:
    """Return how a classification model pools, and its stages with the names of their tensors.

    Args:
        config: the content of a ``config.json``.
        decoder: the model's configuration.
        labels: number of classes.

    Raises:
        UnsupportedDecoder: the family's head is not known here.
    """
    width, kind = decoder.hidden, str(config.get("model_type"))

    def dense(
        name: str, outputs: int, activation: StageActivation = "none", *, bias: bool = True
    ) -> tuple[EncoderStage, str]:
        return EncoderStage("dense", width, outputs, bias, activation), name

    if kind == "bert":
        return "cls", [dense("bert.pooler.dense", width, "tanh"), dense("classifier", labels)]
    if kind in ("roberta", "xlm-roberta", "camembert", "mpnet"):
        return "cls", [dense("classifier.dense", width, "tanh"), dense("classifier.out_proj", labels)]
    if kind == "distilbert":
        return "cls", [dense("pre_classifier", width, "relu"), dense("classifier", labels)]
    if kind == "modernbert":
        if (function := config.get("classifier_activation", "gelu")) != "gelu":
            raise UnsupportedDecoder(f"activation {function} of a classification head")
        norm = EncoderStage(
            "norm", width, width, bool(config.get("norm_bias")), epsilon=float(config.get("norm_eps", 1e-5))
        )
        first = dense("head.dense", width, "gelu", bias=bool(config.get("classifier_bias")))
        pooling: Pooling = "mean" if config.get("classifier_pooling") == "mean" else "cls"
        return pooling, [first, (norm, "head.norm"), dense("classifier", labels)]
    if not decoder.bidirectional:
        return "lasttoken", [dense("score", labels, bias=False)]
    raise UnsupportedDecoder(f"the classification head of {kind}")


def stage_weights(
    model: str, config: EncoderConfig, places: Mapping[int, tuple[Path | None, str]], checkpoint: TensorSource
) -> list[Weight]:
    """Return the tensors of an encoder's stages.

    Args:
        model: the model's name, for error messages.
        config: the encoder's description.
        places: where each stage's tensors are, as ``EncoderFolder.tensors``.
        checkpoint: the tensors of the checkpoint itself.

    Raises:
        ModelUnavailable: a tensor is missing or of another shape.
    """
    weights = []
    for index, (folder, name) in places.items():
        source = checkpoint if folder is None else _source(folder)
        stage = config.stages[index]
        shape = (stage.outputs, stage.inputs) if stage.kind == "dense" else (stage.outputs,)
        for suffix, wanted in (("weight", shape), *((("bias", shape[:1]),) if stage.bias else ())):
            full = f"{name}.{suffix}"
            if full not in source.names():
                raise mismatched(model, f"{named({full})} missing")
            if source.shape(full) not in stored_shapes(wanted):
                raise mismatched(model, f"{full} is {list(source.shape(full))} and not {list(wanted)}")
            read = partial(_reshaped, source, full, wanted)
            weights.append(Weight(f"stage.{index}.{suffix}", wanted, False, read))
    return weights


def logit_weight(
    layout: CheckpointLayout, tokens: Sequence[int], source: TensorSource, hidden: int, matrix: str | None = None
) -> Weight:
    """Return the stage that computes the logit of a decoder that answers yes or no.

    Args:
        layout: how the checkpoint names its tensors, with its output head if it has one.
        tokens: the ids of "yes" and "no", or one id.
        source: the checkpoint's tensors.
        hidden: width of a token's state.
        matrix: the tensor with a row for each of these; None for the output head, whose rows are all tokens'.
    """
    stored = StoredTensors(layout, source)
    name = matrix or stored.name("lm_head.weight") or stored.name(f"{layout.names['embed']}.weight")
    assert name is not None  # the embedding was converted

    def read() -> Array:
        rows = [source.read_rows(name, token, token + 1) for token in tokens]
        return rows[0] - rows[1] if len(rows) > 1 else rows[0]

    return Weight("stage.0.weight", (1, hidden), False, read)


def _reshaped(source: TensorSource, name: str, shape: tuple[int, ...]) -> Array:
    return source.read(name).reshape(shape)


def _source(folder: Path) -> TensorSource:
    """Return the tensors of a module's folder."""
    file = folder / "model.safetensors"
    if file.is_file():
        return SafetensorsSource([file])
    import torch  # of older folders only

    from runtime.loading.tensor_source import StateDictSource

    return StateDictSource(torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True))
