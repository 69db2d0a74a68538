"""Loading as the registry wants it: the engine for a model, warmed up, with each phase timed.

Nothing on the way from a snapshot to a first token on compiled kernels imports torch or transformers.
"""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from runtime.device import select_device, select_dtype, usable_cores
from runtime.engine.block_pool import BlockPool
from runtime.engine.engine import Engine
from runtime.engine.native import runner as native
from runtime.engine.scheduler import Scheduler
from runtime.engine.sequence import Runner
from runtime.errors import ModelUnavailable
from runtime.loading.loader import Loaded, fetch, load, open_serving
from runtime.loading.memory_plan import MemoryPlan
from runtime.loading.model_files import identity
from runtime.loading.precision import (
    fast_fingerprint,
    reference_dtype,
    reference_fingerprint,
    serving_dtype,
    weight_kind,
)
from runtime.model.catalogue import ModelSpec
from runtime.model.chat_encoder import ChatEncoder
from runtime.model.config import UnsupportedDecoder
from runtime.model.load_timer import Phases
from runtime.model.progress import Progress, Reporter
from runtime.model.snapshot import Snapshot
from runtime.settings import Settings
from runtime.telemetry.metrics import Metrics, ModelMetrics
from runtime.types import ModelInfo

if TYPE_CHECKING:
    from runtime.engine.reference import ReferenceEngine

_log = logging.getLogger("warmstart.load")

_FALLBACK_CONTEXT = 2048  # for configurations that name no longest context


def load_engine(
    spec: ModelSpec,
    settings: Settings,
    progress: Progress,
    metrics: ModelMetrics | None = None,
    phases: Phases | None = None,
    plan: MemoryPlan | None = None,
) -> Engine | ReferenceEngine:
    """Load a model and warm it up.

    Args:
        spec: the model.
        settings: all of them.
        progress: told what is being done.
        metrics: what the engine feeds.
        phases: takes the times of this load.
        plan: of all models that are served; the model is alone if left out.

    Raises:
        ModelUnavailable: it cannot be had, or not with these settings; the message says what to do.
    """
    phases = phases or Phases()
    metrics = metrics or Metrics().model(spec.id)
    device = select_device(settings.device)
    if settings.engine != "reference":
        try:
            return _fast(spec, settings, device, progress, metrics, phases, plan)
        except UnsupportedDecoder as reason:
            if settings.engine == "fast":
                raise ModelUnavailable(f"ENGINE=fast cannot run {spec.id}: {reason}") from None
            _log.info("%s is served by the reference engine; the fast one does not know: %s", spec.id, reason)
    return _reference(spec, settings, device, progress, metrics, phases)


def pull(spec: ModelSpec, settings: Settings) -> None:
    """Make a model ready for a quick start: ask the hub for its newest revision, convert what needs converting.

    Raises:
        ModelUnavailable: see ``load_engine``.
    """
    reporter = Reporter(spec.id)
    try:
        fetch(spec, reporter, refresh=True)
        device = select_device(settings.device)
        if settings.engine != "reference":
            with contextlib.suppress(UnsupportedDecoder):
                kind = weight_kind(serving_dtype(settings, device))
                open_serving(spec, kind, settings.cache_dir, reporter, Phases())
                return
        load(spec, device, select_dtype("float32", device), reporter)  # proves that the files load
    finally:
        reporter.close()


@dataclass(frozen=True, slots=True)
class Fast:
    """A model that the fast engine can run.

    Args:
        runner: runs its steps.
        snapshot: its weights, tokenizer and facts.
        dtype: of the weights.
        optimizations: what makes it quick, in words.
    """

    runner: Runner
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
    """Open a model's snapshot, or make it, and a runner on it.

    Args:
        spec: the model.
        settings: all of them.
        device: from ``select_device``.
        progress: told what is being done.
        phases: takes the times of it.
        plan: see ``load_engine``.

    Raises:
        ModelUnavailable: see ``load_engine``.
        UnsupportedDecoder: the fast decoder does not know the model.
    """
    dtype = serving_dtype(settings, device)
    snapshot = open_serving(spec, weight_kind(dtype), settings.cache_dir, progress, phases)
    with phases.phase("runner"):
        kv_bytes = (plan or MemoryPlan([spec], settings)).kv_bytes(spec)
        runner, optimizations = make_runner(snapshot, device, dtype, settings, kv_bytes)
    return Fast(runner, snapshot, dtype, optimizations)


def _fast(
    spec: ModelSpec,
    settings: Settings,
    device: str,
    progress: Progress,
    metrics: ModelMetrics,
    phases: Phases,
    plan: MemoryPlan | None,
) -> Engine:
    started = time.perf_counter()
    fast = open_fast(spec, settings, device, progress, phases, plan)
    runner, snapshot, facts = fast.runner, fast.snapshot, fast.snapshot.facts
    optimizations = fast.optimizations
    if settings.prefix_cache_bytes:
        optimizations += ("prefix cache",)
    if settings.speculate_tokens:
        optimizations += ("n-gram speculation",)
    pool = BlockPool(runner.blocks, runner.block_tokens, cache_blocks=settings.prefix_cache_bytes // runner.block_bytes)
    scheduler = Scheduler(
        pool,
        max_rows=settings.max_batch,
        max_tokens=runner.max_tokens,
        token_budget=settings.token_budget,
        eos=frozenset(facts.end_ids),
        speculate=settings.speculate_tokens,
    )
    chat = ChatEncoder(snapshot.tokenizer)
    kernels = isinstance(runner, native.NativeRunner)
    info = ModelInfo(
        name=spec.id,
        revision=facts.revision or spec.revision,
        source=spec.kind,
        architecture=facts.architecture,
        parameters=facts.parameters,
        dtype=fast.dtype,
        device=device,
        context_length=facts.decoder.context_length,
        vocabulary_size=facts.decoder.vocabulary,
        chat_template=chat.own_template,
        load_seconds=time.perf_counter() - started,
        warmup_seconds=0.0,
        weights_bytes=snapshot.nbytes,
        engine="native" if kernels else "torch",
        optimizations=optimizations,
        kv_bytes=runner.blocks * runner.block_bytes,
        fingerprint=fast_fingerprint(snapshot, device, fast.dtype, settings, kernels=kernels),
    )
    engine = Engine(
        runner,
        scheduler,
        snapshot.tokenizer,
        chat,
        info,
        metrics=metrics,
        max_queue=settings.max_queue,
        timeout=settings.request_timeout_seconds,
    )
    _warm_up(engine, progress, phases)
    return engine


def make_runner(
    snapshot: Snapshot, device: str, dtype: str, settings: Settings, kv_bytes: int
) -> tuple[Runner, tuple[str, ...]]:
    """What runs the model's steps, and what it does to be quick.

    Args:
        snapshot: the model.
        device: from ``select_device``.
        dtype: of the weights; int8 computes in what the device is fast at.
        settings: threads and step sizes.
        kv_bytes: for keys and values.
    """
    config = snapshot.facts.decoder
    threads = settings.num_threads or usable_cores()
    weights = (f"{snapshot.facts.kind} weights",)
    kernels = native.available()
    if device == "cpu" and kernels and native.supports(config):
        found = native.NativeRunner(snapshot, kv_bytes=kv_bytes, max_tokens=settings.max_step_tokens, threads=threads)
        return found, (*weights, f"{kernels} kernels", "paged kv")
    import torch

    from runtime.engine.pytorch.decoder import weights_from_snapshot
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


def _reference(
    spec: ModelSpec, settings: Settings, device: str, progress: Progress, metrics: ModelMetrics, phases: Phases
) -> ReferenceEngine:
    with phases.phase("imports of torch and transformers"):
        from runtime.engine.reference import ReferenceEngine

    started = time.perf_counter()
    dtype = reference_dtype(settings, device)
    with phases.phase("weights"):
        source = identity(spec, fetch(spec, progress))  # before the files are read: what changes meanwhile is another
        loaded = load(spec, device, dtype, progress)
    info = _reference_info(spec, loaded, time.perf_counter() - started)
    engine = ReferenceEngine(
        loaded,
        replace(info, fingerprint=reference_fingerprint(source, device, dtype, settings)),
        metrics=metrics,
        max_queue=settings.max_queue,
        timeout=settings.request_timeout_seconds,
        num_threads=settings.num_threads,
    )
    _warm_up(engine, progress, phases)
    return engine


def _warm_up(engine: Engine | ReferenceEngine, progress: Progress, phases: Phases) -> None:
    progress("warming up", None)
    with phases.phase("warm-up"):
        engine.warm_up()
    engine.info = replace(engine.info, warmup_seconds=phases.seconds["warm-up"])


def _vocabulary(model: Any) -> int:
    """Tokens for which one of transformers' models has both an embedding and a logit."""
    tables = (model.get_input_embeddings(), model.get_output_embeddings())
    weights = [getattr(table, "weight", None) for table in tables]  # a few heads are more than one product
    return min(int(weight.shape[0]) for weight in weights if weight is not None)


def _reference_info(spec: ModelSpec, loaded: Loaded, seconds: float) -> ModelInfo:
    config = loaded.model.config
    text = config.get_text_config()  # a multimodal model's own configuration says nothing of texts
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
        optimizations=("sdpa attention",) if config._attn_implementation == "sdpa" else (),
    )
