"""Loading as the registry wants it: files, weights, engine, warm-up, with each phase timed."""

from __future__ import annotations

import time
from dataclasses import replace

from runtime.catalogue import ModelSpec
from runtime.engine.reference import ReferenceEngine
from runtime.loader import Loaded, load
from runtime.progress import Progress
from runtime.settings import Settings
from runtime.types import ModelInfo

_FALLBACK_CONTEXT = 2048  # for configurations that name no longest context


def load_engine(spec: ModelSpec, settings: Settings, progress: Progress) -> ReferenceEngine:
    """Load a model and warm it up.

    Raises:
        ModelUnavailable: see ``runtime.loader.load``.
    """
    started = time.perf_counter()
    loaded = load(spec, settings, progress)
    engine = ReferenceEngine(
        loaded,
        _info(spec, loaded, time.perf_counter() - started),
        max_queue=settings.max_queue,
        timeout=settings.request_timeout_seconds,
        num_threads=settings.num_threads,
    )
    progress("warming up", None)
    started = time.perf_counter()
    engine.warm_up()
    engine.info = replace(engine.info, warmup_seconds=time.perf_counter() - started)
    return engine


def _info(spec: ModelSpec, loaded: Loaded, seconds: float) -> ModelInfo:
    config = loaded.model.config
    context = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    return ModelInfo(
        name=spec.id,
        revision=loaded.revision or spec.revision,
        source=spec.kind,
        architecture=(config.architectures or [type(loaded.model).__name__])[0],
        parameters=sum(p.numel() for p in loaded.model.parameters()),
        dtype=str(loaded.dtype).removeprefix("torch."),
        device=str(loaded.device),
        context_length=int(context or _FALLBACK_CONTEXT),
        vocabulary_size=int(config.vocab_size),
        chat_template=bool(loaded.tokenizer.chat_template),
        load_seconds=seconds,
        warmup_seconds=0.0,
        weights_bytes=sum(p.numel() * p.element_size() for p in loaded.model.parameters()),
        engine="reference",
        optimizations=("sdpa attention",) if config._attn_implementation == "sdpa" else (),
    )
