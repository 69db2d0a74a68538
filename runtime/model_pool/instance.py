"""A model's stay in memory, and which stays must end so that another can begin."""

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
    """What the registry needs of an engine."""

    @property
    def info(self) -> ModelInfo:
        """What is known of the model."""
        ...

    @property
    def alive(self) -> bool:
        """Whether its worker runs, or will again."""
        ...

    @property
    def beating(self) -> bool:
        """Whether it is alive and gets on with its work."""
        ...

    @property
    def memory_bytes(self) -> int:
        """What it holds now."""
        ...

    def close(self, grace: float = 0) -> None:
        """Free everything; requests that still run after ``grace`` seconds end with ``Draining``."""
        ...


E = TypeVar("E", bound=Loadable)


@dataclass(slots=True, eq=False)
class ModelInstance(Generic[E]):
    """One stay of a model in memory, from the start of its load until its memory is free again.

    Args:
        spec: the model.
        pinned: whether it stays when others need the room.
        loaded: done when the engine is there, or with the reason why there is none.
        gone: done when its memory is free again; never cancelled.
        engine: once loaded, until freed.
        bytes: what it takes of the budget: an estimate until it is loaded, 0 before it has been given room.
        holders: requests that run on it, or wait for its load.
        used: monotonic time of the last end of a request on it, or of its load.
        leaving: whether it is unloaded as soon as nobody holds it; nobody new may.
        successor: whether it is loaded to be the default.
        replaced: the default that gave way for it before it was loaded.
    """

    spec: ModelSpec
    pinned: bool = False
    loaded: Future[None] = field(default_factory=Future)
    gone: Future[None] = field(default_factory=Future)
    engine: E | None = None
    bytes: int = 0
    holders: int = 0
    used: float = 0.0
    leaving: bool = False
    successor: bool = False
    replaced: str | None = None


@dataclass(slots=True)
class ModelSlot(Generic[E]):
    """A served model over all its stays.

    Args:
        spec: the model.
        pinned: whether it stays loaded when others need the room.
        created: Unix time at which this process began to serve it.
        current: the stay that takes new requests.
        stage: what its load is doing now, and ``progress`` how far that is.
        error: why its last load failed.
        bytes: what it took when it was last loaded, or would take.
        last_used: Unix time at which a request last began or ended on it.
        loads: of the process's life, as ``ModelStatus`` counts them; so are the other counts.
        watchers: called when its state, stage or progress changes.
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

    def tell(self) -> None:
        """Tell the watchers."""
        for watcher in self.watchers:
            watcher()


def to_unload(name: str, need: int, budget: int, residents: Sequence[ModelInstance[E]]) -> list[ModelInstance[E]]:
    """Whom to unload so that a model fits: the least recently used, those that nobody holds before the others.

    Args:
        name: the model's id.
        need: bytes that it takes.
        budget: bytes that all may take together.
        residents: who takes part of it now, without the model itself.

    Returns:
        Loaded residents that are not pinned; none if it fits, or will when those that leave already are gone. Fewer
        than are needed if others still load: they can be asked once they are loaded.

    Raises:
        ModelTooLarge: it would not fit alone beside the pinned ones.
    """
    pinned = sum(resident.bytes for resident in residents if resident.pinned and not resident.leaving)
    if need + pinned > budget:
        beside = f" beside the pinned models, which hold {pinned}" if pinned else ""
        raise ModelTooLarge(
            f"{name} needs {need} bytes of memory and the models may hold {budget}{beside} (MEMORY_BUDGET_BYTES)"
        )
    found: list[ModelInstance[E]] = []
    excess = need + sum(resident.bytes for resident in residents if not resident.leaving) - budget
    candidates = [r for r in residents if r.engine is not None and not r.pinned and not r.leaving]
    for resident in sorted(candidates, key=lambda r: (r.holders > 0, r.used)):
        if excess <= 0:
            break
        found.append(resident)
        excess -= resident.bytes
    return found
