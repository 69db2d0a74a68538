"""The models this process serves: loaded lazily, once, off the event loop.

Loads run on threads of their own and are shared through ``concurrent.futures``, so that callers may come from any event
loop: a server's one, or the short-lived ones of a function runtime that thaws the same process again and again.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from runtime.catalogue import ModelSpec
from runtime.errors import Draining, InternalError, ModelLoading, ModelNotFound, ServiceError
from runtime.progress import Progress, Reporter
from runtime.types import ModelInfo, ModelState, ModelStatus

_log = logging.getLogger("warmstart.load")

LOAD_THREAD = "load-"
"""How the names of threads that load begin."""


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

    def close(self, grace: float = 0) -> None:
        """Free everything; requests that still run after ``grace`` seconds end with ``Draining``."""
        ...


E = TypeVar("E", bound=Loadable)
Loader = Callable[[ModelSpec, Progress], E]


@dataclass(slots=True)
class _Slot(Generic[E]):
    spec: ModelSpec
    created: int = field(default_factory=lambda: int(time.time()))
    future: Future[E] | None = None  # of the load under way, or of the loaded engine; never of a failure
    stage: str | None = None
    progress: float | None = None
    error: str | None = None


class Registry(Generic[E]):
    """See the module. Implements ``handlers.context.Models``.

    Args:
        specs: the models, the default first.
        load: loads one, on a thread of its own; raises ``ServiceError`` if it cannot.
        wait_seconds: how long a call waits for a load.
    """

    def __init__(self, specs: Sequence[ModelSpec], load: Loader[E], *, wait_seconds: float = 120) -> None:
        self._slots = {spec.id: _Slot[E](spec) for spec in specs}
        self._default = specs[0].id
        self._load = load
        self._wait_seconds = wait_seconds
        self._lock = threading.Lock()
        self.draining = False

    async def engine(self, name: str | None) -> E:
        """See ``handlers.context.Models``."""
        slot = self._slot(name)
        future = self._start(slot)
        try:
            # Shielded: a caller that gives up must not cancel the load that the others wait for.
            return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(future)), self._wait_seconds)
        except TimeoutError:
            raise ModelLoading(
                f"{slot.spec.id} is still loading after {self._wait_seconds:g} s (MODEL_WAIT_SECONDS)", retry_after=5
            ) from None

    def preload(self) -> Future[E]:
        """Start loading the default model; do not wait."""
        return self._start(self._slots[self._default])

    def unload(self, name: str | None = None, *, grace: float = 0) -> bool:
        """Free a model's memory; requests that still run after ``grace`` seconds end with ``Draining``.

        Returns:
            Whether it was loaded.
        """
        slot = self._slot(name)
        with self._lock:
            future, slot.future = slot.future, None
        if future is None:
            return False
        future.result().close(grace)
        return True

    def status(self) -> list[ModelStatus]:
        """See ``handlers.context.Models``."""
        return [self._status(slot) for slot in self._slots.values()]

    @property
    def ready(self) -> bool:
        """Whether the default model is loaded, its worker beats, and the service is not draining."""
        future = self._slots[self._default].future
        return not self.draining and future is not None and future.done() and future.result().beating

    @property
    def alive(self) -> bool:
        """See ``handlers.context.Models``."""
        future = self._slots[self._default].future
        return self.draining or future is None or not future.done() or future.result().alive

    def close(self, grace: float = 0) -> None:
        """Unload everything. Loads under way are abandoned with their daemon threads."""
        self.draining = True
        for slot in self._slots.values():
            if slot.future is not None and slot.future.done():
                self.unload(slot.spec.id, grace=grace)

    def _slot(self, name: str | None) -> _Slot[E]:
        slot = self._slots.get(name or self._default)
        if slot is None:
            raise ModelNotFound(f"no model {name!r} here; served: {', '.join(self._slots)}", param="model")
        return slot

    def _start(self, slot: _Slot[E]) -> Future[E]:
        with self._lock:
            if self.draining:
                raise Draining("the service is shutting down", retry_after=1)
            if slot.future is None:
                slot.future = Future()
                slot.error = None
                threading.Thread(
                    target=self._run, args=(slot, slot.future), name=LOAD_THREAD + slot.spec.id, daemon=True
                ).start()
            return slot.future

    def _run(self, slot: _Slot[E], future: Future[E]) -> None:
        reporter = Reporter(slot.spec.id)

        def progress(stage: str, fraction: float | None) -> None:
            slot.stage, slot.progress = stage, fraction
            reporter(stage, fraction)

        try:
            engine = self._load(slot.spec, progress)
        except Exception as error:
            if not isinstance(error, ServiceError):
                _log.exception("loading %s failed", slot.spec.id)
                error = InternalError(f"loading {slot.spec.id} failed; the log has the details")
            _log.error("%s is not loaded: %s", slot.spec.id, error)
            # Forgotten before the waiters wake, so that the next call tries again.
            with self._lock:
                slot.future, slot.error = None, str(error)
            future.set_exception(error)
        else:
            future.set_result(engine)
            _log.info(
                "%s is ready: load %.1f s, warm-up %.1f s",
                slot.spec.id,
                engine.info.load_seconds,
                engine.info.warmup_seconds,
            )
        finally:
            slot.stage = slot.progress = None
            reporter.close()

    def _status(self, slot: _Slot[E]) -> ModelStatus:
        future, info = slot.future, None
        state: ModelState = "failed" if slot.error else "unloaded"
        if future is not None:
            state = "ready" if future.done() else "loading"
            info = future.result().info if future.done() else None
        return ModelStatus(
            id=slot.spec.id,
            source=slot.spec.kind,
            state=state,
            default=slot.spec.id == self._default,
            created=slot.created,
            stage=slot.stage,
            progress=slot.progress,
            error=slot.error,
            info=info,
        )
