"""Creates the reference engine for a model, which runs it with transformers."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from runtime.loading.loader import fetch, load
from runtime.loading.model_facts import configured_sampling
from runtime.loading.model_files import identity
from runtime.loading.precision import check_kv_dtype, reference_dtype, reference_fingerprint, type_refused
from runtime.model.catalogue import ModelSpec
from runtime.model.load_timer import Phases
from runtime.model.loaded import Loaded
from runtime.model.packing import MIXED_KINDS
from runtime.model.progress import Progress
from runtime.settings import Settings
from runtime.telemetry.model_metrics import ModelMetrics
from runtime.types import ModelInfo

if TYPE_CHECKING:
    from runtime.engine.reference import ReferenceEngine


_FALLBACK_CONTEXT = 2048  # tokens; for configurations without a maximum context length


def load_reference(
    spec: ModelSpec, settings: Settings, device: str, progress: Progress, metrics: ModelMetrics, phases: Phases
) -> ReferenceEngine:
    """Load a model in the reference engine, not warmed up. Arguments and errors as for ``load_engine``."""
    with phases.phase("imports of torch and transformers"):
        from runtime.engine.reference import ReferenceEngine

    started = time.perf_counter()
    check_kv_dtype(settings)
    if settings.dtype in MIXED_KINDS:
        raise type_refused(settings.dtype, f"needs the compiled kernels, which do not run {spec.id}")
    dtype = reference_dtype(settings, device)
    with phases.phase("weights"):
        path = fetch(spec, progress)
        source = identity(spec, path)  # before the files are read, as they may change
        loaded = load(spec, device, dtype, progress)
    info = _reference_info(spec, loaded, time.perf_counter() - started)
    if settings.generation_config == "model":
        info = replace(info, sampling_defaults=configured_sampling(path))
    return ReferenceEngine(
        loaded,
        replace(info, fingerprint=reference_fingerprint(source, device, dtype, settings)),
        metrics=metrics,
        max_queue=settings.max_queue,
        timeout=settings.request_timeout_seconds,
        num_threads=settings.num_threads,
    )


def _vocabulary(model: Any) -> int:
    """Return the number of tokens for which a transformers model has both an embedding and a logit."""
    tables = (model.get_input_embeddings(), model.get_output_embeddings())
    weights = [getattr(table, "weight", None) for table in tables]  # a few heads are not a single matrix
    return min(int(weight.shape[0]) for weight in weights if weight is not None)


def _reference_info(spec: ModelSpec, loaded: Loaded, seconds: float) -> ModelInfo:
    """Return the properties of a model in the reference engine, without its fingerprint.

    Args:
        spec: the model.
        loaded: the loaded model.
        seconds: duration of the load.
    """
    config = loaded.model.config
    text = config.get_text_config()  # a multimodal model's top level has no text settings
    context = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)
    return ModelInfo(
        name=spec.id,
        revision=loaded.revision or spec.revision,
        source=spec.kind,
        architecture=(config.architectures or [type(loaded.model).__name__])[0],
        parameters=sum(p.numel() for p in loaded.model.parameters()),
        dtype=loaded.dtype,
        device=loaded.device,
        context_length=int(context or _FALLBACK_CONTEXT),
        vocabulary_size=_vocabulary(loaded.model),
        chat_template=bool(loaded.tokenizer.chat_template),
        load_seconds=seconds,
        warmup_seconds=0.0,
        weights_bytes=sum(p.numel() * p.element_size() for p in loaded.model.parameters()),
        engine="reference",
        weight_types=(loaded.dtype,),
        kv_dtype=loaded.dtype,
        optimizations=("sdpa attention",) if config._attn_implementation == "sdpa" else (),
    )
