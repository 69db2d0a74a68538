"""Creates the fast engine for a model, from its snapshot and a native or PyTorch runner."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from runtime.device import select_dtype
from runtime.engine.block_pool import BlockPool
from runtime.engine.core_share import CoreShare
from runtime.engine.encoder_engine import EncoderEngine
from runtime.engine.engine import FastEngine
from runtime.engine.grammar import GrammarCompiler
from runtime.engine.native.runner import NativeRunner
from runtime.engine.runners import BenchRunner
from runtime.engine.scheduler import Scheduler
from runtime.errors import ModelUnavailable
from runtime.host import require_torch, usable_cores
from runtime.loading import kernels
from runtime.loading.encoder_engine import encoder_engine, encoder_over, used_as_encoder
from runtime.loading.loader import open_serving
from runtime.loading.memory_plan import MemoryPlan
from runtime.loading.model_info import snapshot_info
from runtime.loading.precision import check_file_types, check_kv_dtype, serving_dtype, weight_kind
from runtime.model.catalogue import ModelSpec
from runtime.model.chat_encoder import ChatEncoder
from runtime.model.load_timer import Phases
from runtime.model.progress import Progress
from runtime.model.snapshot import Snapshot
from runtime.settings import Settings
from runtime.telemetry.model_metrics import ModelMetrics


@dataclass(frozen=True, slots=True)
class Fast:
    """A snapshot opened for the fast engine, with its runner.

    Args:
        runner: the runner of the model's steps.
        snapshot: the model's weights, tokenizer and properties.
        dtype: the weights' number type.
        optimizations: descriptions of the active optimizations.
    """

    runner: BenchRunner
    snapshot: Snapshot
    dtype: str
    optimizations: tuple[str, ...]


def open_fast(
    spec: ModelSpec,
    settings: Settings,
    device: str,
    progress: Progress,
    phases: Phases,
    plan: MemoryPlan | None = None,
) -> Fast:
    """Open a model's snapshot, making it first if needed, and create a runner for it.

    Args:
        spec: the model.
        settings: the service's settings.
        device: the device, from ``select_device``.
        progress: progress callback.
        phases: receives the times of the load's phases.
        plan: the memory plan of all served models; None if the model is served alone.

    Raises:
        ModelUnavailable: the model cannot be loaded, or not with these settings; the message says what to do.
        UnsupportedDecoder: the fast decoder does not support the model.
    """
    dtype = serving_dtype(settings, device)
    snapshot = _open(spec, settings, dtype, progress, phases)
    if snapshot.facts.encoder is not None:
        raise ModelUnavailable(f"{spec.id} is an encoder and generates no text")
    return _generator(spec, snapshot, settings, device, dtype, phases, plan)


def _open(spec: ModelSpec, settings: Settings, dtype: str, progress: Progress, phases: Phases) -> Snapshot:
    """Open a model's snapshot. Arguments and errors as for ``open_fast``."""
    check_file_types(spec, dtype)
    return open_serving(spec, weight_kind(dtype), settings.cache_dir, progress, phases)


def _generator(
    spec: ModelSpec,
    snapshot: Snapshot,
    settings: Settings,
    device: str,
    dtype: str,
    phases: Phases,
    plan: MemoryPlan | None,
) -> Fast:
    """Create the runner of a model that generates. Arguments and errors as for ``open_fast``."""
    with phases.phase("runner"):
        kv_bytes = (plan or MemoryPlan([spec], settings)).kv_bytes(spec)
        runner, optimizations = make_runner(snapshot, device, dtype, settings, kv_bytes)
    return Fast(runner, snapshot, dtype, optimizations)


def load_fast(
    spec: ModelSpec,
    settings: Settings,
    device: str,
    progress: Progress,
    metrics: ModelMetrics,
    phases: Phases,
    plan: MemoryPlan | None,
    share: CoreShare | None = None,
) -> FastEngine | EncoderEngine:
    """Load a model in the fast engine or, if it is an encoder, in that of encoders, not warmed up.

    Arguments and errors are those of ``open_fast``.

    Args:
        metrics: the model's metrics, which the engine updates.
        share: gives encoders in this process their turns between the steps of models that generate.
    """
    started = time.perf_counter()
    dtype = serving_dtype(settings, device)
    opened = _open(spec, settings, dtype, progress, phases)
    if opened.facts.encoder is not None:
        with phases.phase("runner"):
            return encoder_engine(spec, opened, settings, device, dtype, metrics, started, share)
    fast = _generator(spec, opened, settings, device, dtype, phases, plan)
    runner, snapshot, facts = fast.runner, fast.snapshot, fast.snapshot.facts
    optimizations = fast.optimizations
    if settings.prefix_cache_bytes:
        optimizations += ("prefix cache",)
    if settings.speculate_tokens:
        optimizations += ("n-gram speculation",)
    pool = BlockPool(runner.blocks, runner.block_tokens, cache_blocks=settings.prefix_cache_bytes // runner.block_bytes)
    context_length = facts.decoder.context_length
    caching = settings.prefix_cache_bytes > 0
    metrics.kv_cache(runner.block_tokens, runner.blocks, context_length, prefix_caching=caching)
    scheduler = Scheduler(
        pool,
        max_rows=settings.max_batch,
        max_tokens=runner.max_tokens,
        token_budget=settings.token_budget,
        eos=frozenset(facts.end_ids),
        speculate=settings.speculate_tokens,
        short_context=facts.decoder.short_context,
    )
    chat = ChatEncoder(snapshot.tokenizer)
    encoder = used_as_encoder(facts.decoder)
    share = share or CoreShare()
    info = snapshot_info(
        spec,
        snapshot,
        settings,
        device=device,
        dtype=fast.dtype,
        level=runner.level,
        optimizations=optimizations,
        started=started,
    )
    info = replace(
        info,
        chat_template=chat.own_template,
        kv_bytes=runner.blocks * runner.block_bytes,
        kv_dtype=runner.kv_dtype,
        kv_tokens=runner.blocks * runner.block_tokens,
        sampling_defaults=facts.sampling_defaults if settings.generation_config == "model" else (),
        encoder=encoder.info(facts.decoder.hidden),
    )

    def embedder() -> EncoderEngine:
        return encoder_over(snapshot, encoder, info, settings, metrics, share, runner)

    return FastEngine(
        runner,
        scheduler,
        snapshot.tokenizer,
        chat,
        info,
        metrics=metrics,
        grammars=GrammarCompiler(snapshot.tokenizer, end_ids=facts.end_ids, vocabulary=facts.decoder.vocabulary),
        max_queue=settings.max_queue,
        timeout=settings.request_timeout_seconds,
        share=share,
        embedder=embedder,
    )


def make_runner(
    snapshot: Snapshot, device: str, dtype: str, settings: Settings, kv_bytes: int
) -> tuple[BenchRunner, tuple[str, ...]]:
    """Create the runner of a model's steps: native on a CPU with compiled kernels, else PyTorch.

    Args:
        snapshot: the model's snapshot.
        device: the device, from ``select_device``.
        dtype: the weights' number type; PyTorch computes int8 weights in the type that ``auto`` selects.
        settings: the service's settings; threads and step sizes are used.
        kv_bytes: size of the KV cache in bytes.

    Raises:
        ModelUnavailable: PyTorch computes and is not installed, or has no keys and values of the type that ``KV_DTYPE``
            names.

    Returns:
        The runner, and descriptions of its optimizations.
    """
    config = snapshot.facts.decoder
    threads = settings.num_threads or usable_cores()
    weights = (f"{' and '.join(snapshot.weight_types)} weights",)
    found = kernels.host_kernels(settings.cache_dir) if device == "cpu" else None
    if found is not None:
        native_runner = NativeRunner(
            snapshot,
            kv_bytes=kv_bytes,
            kv_dtype=None if settings.kv_dtype == "auto" else settings.kv_dtype,
            max_tokens=settings.max_step_tokens,
            threads=threads,
            kernels=found,
        )
        return native_runner, (*weights, f"{found.level} kernels", f"paged {native_runner.kv_dtype} kv")
    check_kv_dtype(settings)
    require_torch("a model without compiled kernels for this processor")
    import torch

    from runtime.engine.pytorch.model import weights_from_snapshot
    from runtime.engine.pytorch.runner import TorchRunner

    torch.set_num_threads(threads)
    number: torch.dtype = getattr(torch, select_dtype("auto", device) if dtype == "int8" else dtype)
    tensors = weights_from_snapshot(snapshot, number, torch.device(device))
    runner = TorchRunner(
        config,
        tensors,
        kv_bytes=kv_bytes,
        max_tokens=settings.max_step_tokens,
        deterministic=settings.deterministic,
    )
    return runner, (*weights, "paged kv")
