"""Loading as the registry wants it: the engine for a model, warmed up, with each phase timed.

Nothing on the way from a snapshot to a first token on compiled kernels imports torch or transformers.
"""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from runtime.catalogue import ModelSpec
from runtime.chat_prompt import ChatEncoder
from runtime.device import memory_in_use, memory_limit, select_device, select_dtype, usable_cores
from runtime.engine.config import DecoderConfig, UnsupportedDecoder
from runtime.engine.engine import Engine
from runtime.engine.native import runner as native
from runtime.engine.pack import WeightKind
from runtime.engine.scheduler import Scheduler
from runtime.engine.sequence import Runner
from runtime.engine.slots import BlockPool
from runtime.errors import ModelUnavailable
from runtime.loader import Loaded, fetch, load, open_serving
from runtime.metrics import Metrics, ModelMetrics
from runtime.phases import Phases
from runtime.progress import Progress, Reporter
from runtime.settings import Settings
from runtime.snapshot import Snapshot
from runtime.types import ModelInfo

if TYPE_CHECKING:
    from runtime.engine.reference import ReferenceEngine

_log = logging.getLogger("warmstart.load")

_FALLBACK_CONTEXT = 2048  # for configurations that name no longest context
_KINDS: dict[str, WeightKind] = {
    "int8": "int8",
    "bfloat16": "bfloat16",
    "float32": "float32",
    "float16": "float32",  # which bfloat16 could not hold
}


def load_engine(
    spec: ModelSpec,
    settings: Settings,
    progress: Progress,
    metrics: ModelMetrics | None = None,
    phases: Phases | None = None,
) -> Engine | ReferenceEngine:
    """Load a model and warm it up.

    Args:
        spec: the model.
        settings: all of them.
        progress: told what is being done.
        metrics: what the engine feeds.
        phases: takes the times of this load.

    Raises:
        ModelUnavailable: it cannot be had, or not with these settings; the message says what to do.
    """
    phases = phases or Phases()
    device = select_device(settings.device)
    if settings.engine != "reference":
        try:
            return _fast(spec, settings, device, progress, metrics or Metrics().model(spec.id), phases)
        except UnsupportedDecoder as reason:
            if settings.engine == "fast":
                raise ModelUnavailable(f"ENGINE=fast cannot run {spec.id}: {reason}") from None
            _log.info("%s is served by the reference engine; the fast one does not know: %s", spec.id, reason)
    return _reference(spec, settings, device, progress, phases)


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
                open_serving(spec, _KINDS[_dtype(settings, device)], settings.cache_dir, reporter, Phases())
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


def open_fast(spec: ModelSpec, settings: Settings, device: str, progress: Progress, phases: Phases) -> Fast:
    """Open a model's snapshot, or make it, and a runner on it.

    Args:
        spec: the model.
        settings: all of them.
        device: from ``select_device``.
        progress: told what is being done.
        phases: takes the times of it.

    Raises:
        ModelUnavailable: see ``load_engine``.
        UnsupportedDecoder: the fast decoder does not know the model.
    """
    dtype = _dtype(settings, device)
    snapshot = open_serving(spec, _KINDS[dtype], settings.cache_dir, progress, phases)
    with phases.phase("runner"):
        runner, optimizations = make_runner(snapshot, device, dtype, settings)
    return Fast(runner, snapshot, dtype, optimizations)


def _fast(
    spec: ModelSpec, settings: Settings, device: str, progress: Progress, metrics: ModelMetrics, phases: Phases
) -> Engine:
    started = time.perf_counter()
    fast = open_fast(spec, settings, device, progress, phases)
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
        engine="native" if isinstance(runner, native.NativeRunner) else "torch",
        optimizations=optimizations,
    )
    engine = Engine(
        runner,
        scheduler,
        snapshot.tokenizer,
        chat,
        info,
        metrics=metrics,
        memory=lambda: memory_in_use(device),
        max_queue=settings.max_queue,
        timeout=settings.request_timeout_seconds,
    )
    _warm_up(engine, progress, phases)
    return engine


def make_runner(snapshot: Snapshot, device: str, dtype: str, settings: Settings) -> tuple[Runner, tuple[str, ...]]:
    """What runs the model's steps, and what it does to be quick.

    Args:
        snapshot: the model.
        device: from ``select_device``.
        dtype: of the weights; int8 computes in what the device is fast at.
        settings: threads, memory and step sizes.
    """
    config = snapshot.facts.decoder
    threads = settings.num_threads or usable_cores()
    kv_bytes = settings.kv_cache_bytes or _kv_bytes(config, device, settings)
    weights = (f"{snapshot.facts.kind} weights",)
    kernels = native.available()
    if device == "cpu" and kernels and native.supports(config):
        found = native.NativeRunner(snapshot, kv_bytes=kv_bytes, max_tokens=settings.max_step_tokens, threads=threads)
        return found, (*weights, f"{kernels} kernels", "paged kv")
    import torch

    from runtime.engine.decoder import weights_from_snapshot
    from runtime.engine.runner import TorchRunner

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


def _dtype(settings: Settings, device: str) -> str:
    return select_dtype(settings.dtype, device, int8=native.available() is not None)


def _kv_bytes(config: DecoderConfig, device: str, settings: Settings) -> int:
    """Half of the memory that is left, or less if all rows in full length need less."""
    if device.startswith("cuda"):
        import torch

        left = int(torch.cuda.mem_get_info(torch.device(device))[0])
    else:
        left = memory_limit() - memory_in_use("cpu")
    position = 2 * 4 * config.layers * config.kv_heads * config.head_dim  # keys and values, float32 at most
    return min(left // 2, settings.max_batch * config.context_length * position)


def _reference(spec: ModelSpec, settings: Settings, device: str, progress: Progress, phases: Phases) -> ReferenceEngine:
    with phases.phase("imports of torch and transformers"):
        from runtime.engine.reference import ReferenceEngine

    started = time.perf_counter()
    wanted: str = settings.dtype
    dtype = select_dtype("auto" if wanted == "int8" else wanted, device)
    with phases.phase("weights"):
        loaded = load(spec, device, dtype, progress)
    engine = ReferenceEngine(
        loaded,
        _reference_info(spec, loaded, time.perf_counter() - started),
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


def _reference_info(spec: ModelSpec, loaded: Loaded, seconds: float) -> ModelInfo:
    config = loaded.model.config
    context = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    return ModelInfo(
        name=spec.id,
        revision=loaded.revision or spec.revision,
        source=spec.kind,
        architecture=(config.architectures or [type(loaded.model).__name__])[0],
        parameters=sum(p.numel() for p in loaded.model.parameters()),
        dtype=loaded.dtype,
        device=loaded.device,
        context_length=int(context or _FALLBACK_CONTEXT),
        vocabulary_size=int(config.vocab_size),
        chat_template=bool(loaded.tokenizer.chat_template),
        load_seconds=seconds,
        warmup_seconds=0.0,
        weights_bytes=sum(p.numel() * p.element_size() for p in loaded.model.parameters()),
        engine="reference",
        optimizations=("sdpa attention",) if config._attn_implementation == "sdpa" else (),
    )
