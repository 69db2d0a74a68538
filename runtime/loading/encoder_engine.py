"""Creates the engine of an encoder from its snapshot."""

from __future__ import annotations

from dataclasses import replace

from runtime.device import select_dtype
from runtime.engine.core_share import CoreShare
from runtime.engine.encoder_engine import EncoderEngine
from runtime.engine.native.encoder import NativeEncoder
from runtime.engine.pooling import EncoderHead
from runtime.engine.runners import BenchRunner, EncoderRunner
from runtime.host import require_torch, usable_cores
from runtime.loading import kernels
from runtime.loading.model_info import snapshot_info
from runtime.model.catalogue import ModelSpec
from runtime.model.config import DecoderConfig
from runtime.model.encoder_config import EncoderConfig, EncoderStage, stage_tensors
from runtime.model.snapshot import Snapshot
from runtime.settings import Settings
from runtime.telemetry.model_metrics import ModelMetrics
from runtime.types import ModelInfo

_LEAST_STEP = 1024  # tokens; enough texts for the kernels to be at their best
_LONGEST_OF_DECODERS = 8192  # tokens of a text; its activations are in memory at once


def encoder_engine(
    spec: ModelSpec,
    snapshot: Snapshot,
    settings: Settings,
    device: str,
    dtype: str,
    metrics: ModelMetrics,
    started: float,
    share: CoreShare | None = None,
) -> EncoderEngine:
    """Create an encoder's engine, not warmed up.

    Args:
        spec: the model.
        snapshot: its snapshot, whose facts have ``encoder``.
        settings: the service's settings.
        device: the device, from ``select_device``.
        dtype: the weights' number type.
        metrics: the model's metrics, which the engine updates.
        started: the time at which the load began, of ``time.perf_counter``.
        share: gives encoders in this process their turns between the steps of models that generate.
    """
    facts = snapshot.facts
    config = facts.encoder
    assert config is not None
    runner, level, optimizations = make_encoder(snapshot, device, dtype, settings, share)
    head = EncoderHead(config, {name: snapshot.vector(name) for name in stage_tensors(config)})
    info = snapshot_info(
        spec,
        snapshot,
        settings,
        device=device,
        dtype=dtype,
        level=level,
        optimizations=optimizations,
        started=started,
    )
    info = replace(info, context_length=config.max_tokens, encoder=config.info(facts.decoder.hidden), generates=False)
    return _engine(runner, config, head, snapshot, info, settings, metrics)


def used_as_encoder(decoder: DecoderConfig) -> EncoderConfig:
    """Return how a model that generates embeds: the mean of its tokens' states, of length 1."""
    limit = min(decoder.context_length, _LONGEST_OF_DECODERS)
    stage = EncoderStage("normalize", decoder.hidden, decoder.hidden)
    return EncoderConfig(("embed",), limit, ("mean",), (stage,))


def encoder_over(
    snapshot: Snapshot,
    config: EncoderConfig,
    info: ModelInfo,
    settings: Settings,
    metrics: ModelMetrics,
    share: CoreShare | None,
    generator: BenchRunner,
) -> EncoderEngine:
    """Create an engine that embeds with the weights of a model that generates, which stay in memory once.

    Args:
        snapshot: the model's snapshot.
        config: from ``used_as_encoder``.
        info: the model's metadata.
        settings: the service's settings.
        metrics: the model's metrics.
        share: as for ``encoder_engine``.
        generator: the runner of the model's steps.
    """
    runner = generator.encoder(_max_tokens(config, settings), share)
    return _engine(runner, config, EncoderHead(config, {}), snapshot, info, settings, metrics, gauges=False)


def _engine(
    runner: EncoderRunner,
    config: EncoderConfig,
    head: EncoderHead,
    snapshot: Snapshot,
    info: ModelInfo,
    settings: Settings,
    metrics: ModelMetrics,
    *,
    gauges: bool = True,
) -> EncoderEngine:
    """Return an engine with the limits of the settings. Arguments as for ``EncoderEngine``."""
    return EncoderEngine(
        runner,
        config,
        head,
        snapshot.tokenizer,
        info,
        metrics=metrics,
        token_types=snapshot.facts.decoder.token_types,
        step_tokens=max(settings.max_step_tokens, _LEAST_STEP),
        max_queue=settings.max_queue,
        timeout=settings.request_timeout_seconds,
        gauges=gauges,
    )


def _max_tokens(config: EncoderConfig, settings: Settings) -> int:
    """Return the maximum tokens of a step, which has at least the longest text."""
    return max(config.max_tokens, settings.max_step_tokens, _LEAST_STEP)


def make_encoder(
    snapshot: Snapshot, device: str, dtype: str, settings: Settings, share: CoreShare | None = None
) -> tuple[EncoderRunner, str | None, tuple[str, ...]]:
    """Create what computes the states of an encoder: native on a CPU with compiled kernels, else PyTorch.

    Args:
        snapshot: the encoder's snapshot.
        device: the device, from ``select_device``.
        dtype: the weights' number type; PyTorch computes int8 weights in the type that ``auto`` selects.
        settings: the service's settings; threads and step sizes are used.
        share: as for ``encoder_engine``.

    Returns:
        The runner, the instruction set level of its compiled kernels (None on PyTorch), and descriptions of its
        optimizations.
    """
    config = snapshot.facts.encoder
    assert config is not None
    threads = settings.num_threads or usable_cores()
    max_tokens = _max_tokens(config, settings)
    weights = (f"{' and '.join(snapshot.weight_types)} weights",)
    found = kernels.host_kernels(settings.cache_dir) if device == "cpu" else None
    if found is not None:
        runner = NativeEncoder(snapshot, max_tokens=max_tokens, threads=threads, share=share, kernels=found)
        return runner, found.level, (*weights, f"{found.level} kernels", "packed texts")
    require_torch("an encoder without compiled kernels for this processor")
    import torch

    from runtime.engine.pytorch.encoder import TILE, TorchEncoder
    from runtime.engine.pytorch.model import TorchModel, weights_from_snapshot

    torch.set_num_threads(threads)
    number: torch.dtype = getattr(torch, select_dtype("auto", device) if dtype == "int8" else dtype)
    tensors = weights_from_snapshot(snapshot, number, torch.device(device))
    model = TorchModel(snapshot.facts.decoder, tensors, tile=TILE)
    return TorchEncoder(model, max_tokens=max_tokens, share=share), None, weights
