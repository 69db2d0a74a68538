"""Creates the engine of an encoder that only transformers can run, on its modules."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from runtime.encoder_types import EncoderInput
from runtime.engine.encoder_engine import EncoderEngine
from runtime.engine.pooling import EncoderHead
from runtime.errors import ServiceError
from runtime.host import usable_cores
from runtime.loading.checkpoint_tokenizer import read_tokenizer
from runtime.loading.encoder_folder import EncoderShape, named_reranker, read_encoder_folder
from runtime.loading.encoder_form import tokenizer_limit
from runtime.loading.encoder_heads import stage_weights
from runtime.loading.model_files import check_files, identity
from runtime.loading.precision import reference_dtype, reference_fingerprint
from runtime.loading.tensor_source import StateDictSource
from runtime.model.catalogue import ModelSpec
from runtime.model.config import UnsupportedDecoder
from runtime.model.load_errors import mismatched, named, unavailable
from runtime.settings import Settings
from runtime.telemetry.model_metrics import ModelMetrics
from runtime.types import ModelInfo

_FALLBACK_CONTEXT = 512  # tokens; for configurations without a maximum


class TransformersEncoder:
    """Computes the states of texts, or a classification model's logits, with transformers, text by text, so that the
    result of a text does not depend on others. Implements ``runtime.engine.runners.EncoderRunner``.

    Args:
        model: the model in evaluation mode on its device.
        logits: whether it is a classification model, whose logits are returned in place of a single token's state.
        max_tokens: maximum tokens per step.
    """

    def __init__(self, model: Any, *, logits: bool, max_tokens: int) -> None:
        self._model: Any = model
        self._logits = logits
        self.max_tokens = max_tokens

    def step_tokens(self, most: int) -> int:
        """Return the maximum tokens of the next step."""
        return most

    def states(self, texts: Sequence[EncoderInput], outputs: Sequence[range]) -> list[NDArray[np.float32]]:
        """Return the final states of some of each text's tokens; see ``EncoderRunner``."""
        found = []
        with torch.inference_mode():
            for text, span in zip(texts, outputs, strict=True):
                inputs = {"input_ids": text.ids, **({"token_type_ids": text.types} if text.types else {})}
                tensors = {name: torch.tensor([values], device=self._model.device) for name, values in inputs.items()}
                out = self._model(**tensors)
                states = out.logits if self._logits else out.last_hidden_state[0, span.start : span.stop]
                found.append(states.float().cpu().numpy())
        return found

    def close(self) -> None:
        """Free the model."""
        self._model = None


def load_transformers_encoder(
    spec: ModelSpec, path: Path, settings: Settings, device: str, metrics: ModelMetrics
) -> EncoderEngine:
    """Load an encoder with transformers, not warmed up.

    Args:
        spec: the model.
        path: its folder.
        settings: the service's settings.
        device: the device, from ``select_device``.
        metrics: the model's metrics, which the engine updates.

    Raises:
        ModelUnavailable: the model cannot be loaded; the message says what to do.
        UnsupportedDecoder: a module behind the model is not supported.
    """
    started = time.perf_counter()
    source, dtype = identity(spec, path), reference_dtype(settings, device)
    check_files(spec, path)
    try:
        raw: dict[str, Any] = json.loads((path / "config.json").read_bytes())
        classifies = any(str(name).endswith("ForSequenceClassification") for name in raw.get("architectures") or [])
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        kind: Any = AutoModelForSequenceClassification if classifies else AutoModel
        torch.set_num_threads(settings.num_threads or usable_cores())
        model, loading = kind.from_pretrained(
            path,
            config=config,
            dtype=getattr(torch, dtype),
            output_loading_info=True,
            local_files_only=True,
            trust_remote_code=False,
        )
        tokenizer = read_tokenizer(path)
        context = getattr(config, "max_position_embeddings", None) or tokenizer_limit(path) or _FALLBACK_CONTEXT
        described = read_encoder_folder(
            spec, path, raw, None, EncoderShape(config.hidden_size, int(context), tokenizer_limit(path))
        )
        if described.logit_tokens or named_reranker(spec, path, raw):
            raise UnsupportedDecoder("a decoder that answers yes or no, which only the fast engine has")
        weights = stage_weights(spec.id, described.config, described.tensors, StateDictSource({}))
        tensors = {weight.name: weight.read() for weight in weights}
    except ServiceError:
        raise
    except (OSError, ValueError, KeyError, AttributeError, ImportError, RuntimeError) as error:
        raise unavailable(spec, error) from error
    if missing := {name for name in loading["missing_keys"] if "pooler" not in name}:
        raise mismatched(spec.id, f"{named(missing)} missing")
    info = ModelInfo(
        name=spec.id,
        revision=path.name if spec.kind == "hub" else spec.revision,
        source=spec.kind,
        architecture=type(model).__name__,
        parameters=sum(p.numel() for p in model.parameters()),
        dtype=dtype,
        device=device,
        context_length=described.config.max_tokens,
        vocabulary_size=int(model.get_input_embeddings().weight.shape[0]),
        chat_template=False,
        load_seconds=time.perf_counter() - started,
        warmup_seconds=0.0,
        weights_bytes=sum(p.numel() * p.element_size() for p in model.parameters()),
        engine="reference",
        weight_types=(dtype,),
        fingerprint=reference_fingerprint(source, device, dtype, settings),
        encoder=described.config.info(config.hidden_size),
        generates=False,
    )
    return EncoderEngine(
        TransformersEncoder(model.to(device).eval(), logits=classifies, max_tokens=settings.max_step_tokens),
        described.config,
        EncoderHead(described.config, tensors),
        tokenizer,
        info,
        metrics=metrics,
        token_types=int(getattr(config, "type_vocab_size", 0) or 0),
        step_tokens=settings.max_step_tokens,
        max_queue=settings.max_queue,
        timeout=settings.request_timeout_seconds,
    )
