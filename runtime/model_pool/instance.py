"""Model instances, the served models they belong to, and the choice of instances to evict for a new one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from runtime.errors import ModelTooLarge
from runtime.model.catalogue import ModelSpec
from runtime.types import ModelInfo


class Loadable(Protocol):
    """The part of an engine's interface that the registry uses."""

    @property
    def info(self) -> ModelInfo:
        """The loaded model's properties."""
        ...

    @property
    def alive(self) -> bool:
        """Whether the engine thread is running or will be restarted."""
        ...

    @property
    def beating(self) -> bool:
        """Whether the engine is alive and its steps make progress."""
        ...

    @property
    def memory_bytes(self) -> int:
        """Bytes of memory that the engine uses now."""
        ...

    def close(self, grace: float = 0) -> None:
        """Free the engine's memory; requests still running after ``grace`` seconds fail with ``Draining``."""
        ...


E = TypeVar("E", bound=Loadable)


@dataclass(slots=True, eq=False)
class ModelInstance(Generic[E]):
    """One instance of a model in memory, from the start of its load until its memory is freed.

    Args:
        spec: the model.
        pinned: whether the instance is exempt from eviction.
        loaded: completes when the engine is loaded; fails with the load's error.
        unloaded: completes when the memory is freed; never cancelled.
        engine: the engine, from the end of the load until it is freed; otherwise None.
        bytes: its part of the memory budget: 0 until memory is reserved, then an estimate, exact once loaded.
        leases: number of leases: requests that run on it or wait for its load.
        last_used: monotonic time at which the load, or the last request on it, ended.
        draining: whether it is draining: it takes no new leases and is freed when the last one ends.
        becoming_default: whether it is being loaded to become the default model.
        previous_default: id of the default model that was evicted to load this one as the new default.
    """

    spec: ModelSpec
    pinned: bool = False
    loaded: Future[None] = field(default_factory=Future)
    unloaded: Future[None] = field(default_factory=Future)
    engine: E | None = None
    bytes: int = 0
    leases: int = 0
    last_used: float = 0.0
    draining: bool = False
    becoming_default: bool = False
    previous_default: str | None = None


@dataclass(slots=True)
class ModelSlot(Generic[E]):
    """A served model: its current instance, and the status and counters kept across all its instances.

    Args:
        spec: the model.
        pinned: whether its instances are exempt from eviction.
        created: Unix time at which this process began to serve the model.
        current: the instance that takes new requests; None if there is none.
        stage: the current stage of its load, and ``progress`` the fraction of that stage that is done (0 to 1).
        error: message of the last load's failure; None once another load has started.
        bytes: its part of the memory budget as last estimated or, once loaded, measured.
        last_used: Unix time at which a request on it last began or ended.
        loads: loads since the process began, as in ``ModelStatus``; so are the other counters.
        watchers: callbacks for changes of state, stage or progress.
    """

    spec: ModelSpec
    pinned: bool
    created: int = field(default_factory=lambda: int(time.time()))
    current: ModelInstance[E] | None = None
    stage: str | None = None
    progress: float | None = None
    error: str | None = None
    bytes: int | None = None
    last_used: float | None = None
    loads: int = 0
    load_failures: int = 0
    unloads: int = 0
    evictions: int = 0
    watchers: set[Callable[[], object]] = field(default_factory=set)

    def notify(self) -> None:
        """Call the watchers."""
        for watcher in self.watchers:
            watcher()


def choose_evictions(
    name: str, needed_bytes: int, budget_bytes: int, instances: Sequence[ModelInstance[E]]
) -> list[ModelInstance[E]]:
    """Choose the instances to evict so that a model fits: those without leases first, then the least recently used.

    Args:
        name: id of the model to load.
        needed_bytes: bytes that the model needs.
        budget_bytes: bytes that all models may use together.
        instances: the other instances that use part of the budget.

    Returns:
        Loaded instances that are not pinned; none if the model fits, or will fit once draining instances are freed. Too
        few if others are still loading: call again when they are loaded.

    Raises:
        ModelTooLarge: the model would not fit even if only pinned instances were left.
    """
    pinned = sum(instance.bytes for instance in instances if instance.pinned and not instance.draining)
    if needed_bytes + pinned > budget_bytes:
        beside = f" beside the pinned models, which use {pinned}" if pinned else ""
        raise ModelTooLarge(
            f"{name} needs {needed_bytes} bytes of memory, but all models together may use {budget_bytes}{beside} "
            "(MEMORY_BUDGET_BYTES; DTYPE for smaller weights)"
        )
    chosen: list[ModelInstance[E]] = []
    excess = needed_bytes + sum(instance.bytes for instance in instances if not instance.draining) - budget_bytes
    candidates = [r for r in instances if r.engine is not None and not r.pinned and not r.draining]
    for instance in sorted(candidates, key=lambda r: (r.leases > 0, r.last_used)):
        if excess <= 0:
            break
        chosen.append(instance)
        excess -= instance.bytes
    return chosen
