"""The model families of decoders and encoders: each reads its ``config.json`` into a description and a layout.

An option that is not supported here would silently give wrong results. So it is refused by name, and the reference
engine serves the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runtime.model.checkpoint_layout import CheckpointLayout
from runtime.model.config import DecoderConfig, UnsupportedDecoder
from runtime.model.families.encoders import DECODERS, ENCODERS
from runtime.model.families.family import Family
from runtime.model.quantization import read_quantization
from runtime.model.size_limits import check_sizes

FAMILIES: Mapping[str, Family] = DECODERS
"""The families of models that generate by the ``model_type`` of their configurations."""


def read_config(config: Mapping[str, Any]) -> tuple[DecoderConfig, CheckpointLayout]:
    """Read the content of a ``config.json``, written by transformers 5 or older.

    Raises:
        UnsupportedDecoder: it is incomplete or needs something that the decoder does not support.
    """
    kind, classes = config.get("model_type"), config.get("architectures")
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    if family is None or (classes and family.architecture not in classes):
        raise UnsupportedDecoder(f"architecture {', '.join(map(str, classes or [kind]))}")
    read_quantization(config)
    return _read(family, config)


def read_encoder(config: Mapping[str, Any]) -> tuple[DecoderConfig, CheckpointLayout]:
    """Read the content of a ``config.json`` as that of an encoder, without an output head.

    Raises:
        UnsupportedDecoder: as for ``read_config``.
    """
    kind = config.get("model_type")
    family = ENCODERS.get(kind) if isinstance(kind, str) else None
    if family is None:
        raise UnsupportedDecoder(f"architecture {', '.join(map(str, config.get('architectures') or [kind]))}")
    if config.get("quantization_config"):
        raise UnsupportedDecoder("weights that are quantized in the checkpoint")
    return _read(family, config)


def _read(family: Family, config: Mapping[str, Any]) -> tuple[DecoderConfig, CheckpointLayout]:
    """Read a family's configuration. Errors as for ``read_config``."""
    try:
        check_sizes(config)
        return family.read(family.options(config))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError) as error:
        raise UnsupportedDecoder(f"an incomplete configuration ({error!r})") from error


def configured_end_ids(config: Mapping[str, Any], generation: Mapping[str, Any] | None) -> Any:
    """Return the ids of the tokens that end a text, as transformers finds them: a number, several, or None.

    Args:
        config: the content of a ``config.json`` that ``read_config`` has read.
        generation: the content of a ``generation_config.json``; None if there is none.
    """
    if generation is not None:
        return generation.get("eos_token_id")
    options = FAMILIES[config["model_type"]].options(config)
    if options.get("eos_token_id") is None and "text_config" in options:
        options = FAMILIES["gemma3_text"].options(options["text_config"])
    return options.get("eos_token_id")
