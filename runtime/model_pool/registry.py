"""The registry of served models: loads each once, on its first use, off the event loop, within a memory budget.

Loads run on background threads and are shared through ``concurrent.futures``, so that callers may come from any event
loop: a server's single one, or the short-lived ones of a function runtime that thaws the same process repeatedly.

A request keeps its lease on one model instance until it ends; see ``runtime.model_pool.pool``.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from typing import Generic

from runtime.errors import ModelLoading, ModelNotFound, ServiceError, SettingsError
from runtime.model.catalogue import ModelSpec
from runtime.model_pool.instance import E, ModelInstance, ModelSlot
from runtime.model_pool.pool import Loader, Measure, ModelPool
from runtime.status import ModelState, ModelStatus


class Registry(Generic[E]):
    """Leases, loads, unloads and lists the served models. Implements ``handlers.protocols.Models``.

    Args:
        specs: the models, the default first.
        load: loads a model, on a background thread; raises ``ServiceError`` on failure.
        measure: returns the bytes that a model will need; called on the same thread before the load.
        budget: returns the bytes that all loaded models may use together; called likewise. None for no limit.
        pinned: ids of models that are exempt from eviction.
        wait_seconds: seconds that a call waits for a load, or for a draining model's requests to end.
        idle_seconds: seconds without a request after which a model is unloaded; 0 for never.
        aliases: more names of models, each as ``name=model``.

    Raises:
        SettingsError: a pinned model or an alias's model is not served, or an alias is the name of a served model.
    """

    def __init__(
        self,
        specs: Sequence[ModelSpec],
        load: Loader[E],
        *,
        measure: Measure = lambda spec, progress: 0,
        budget: Callable[[], int] | None = None,
        pinned: Collection[str] = (),
        wait_seconds: float = 120,
        idle_seconds: float = 0,
        aliases: Iterable[str] = (),
    ) -> None:
        self._slots = {spec.id: ModelSlot[E](spec, spec.id in pinned) for spec in specs}
        for name in pinned:
            if name not in self._slots:
                raise SettingsError(f"PINNED_MODELS: {name!r} is not served; served: {', '.join(self._slots)}")
        self._aliases = dict(self._alias(alias) for alias in aliases)
        self._pool = ModelPool(self._slots, specs[0].id, load, measure, budget, idle_seconds)
        self._lock = self._pool.lock
        self._wait_seconds = wait_seconds

    def _alias(self, alias: str) -> tuple[str, str]:
        """Return an alias's name and model.

        Raises:
            SettingsError: it has no name or a served model's, or its model is not served.
        """
        name, _, model = alias.partition("=")
        if not name or model not in self._slots:
            served = ", ".join(self._slots)
            raise SettingsError(f"MODEL_ALIASES: {alias!r} is not name=model with a served model; served: {served}")
        if name in self._slots:
            raise SettingsError(f"MODEL_ALIASES: {name!r} is a served model")
        return name, model

    @property
    def draining(self) -> bool:
        """Whether the service is shutting down."""
        return self._pool.draining

    @property
    def budget_bytes(self) -> int:
        """Bytes that all loaded models may use together; 0 before the first load, and for no limit."""
        return self._pool.budget_bytes

    @asynccontextmanager
    async def lease(self, name: str | None) -> AsyncIterator[E]:
        """Lease a model's engine (None: the default's), loading it if needed. See ``handlers.protocols.Models``."""
        while True:
            with self._lease_instance(name) as instance:
                try:
                    await self._wait_until_loaded(instance)
                except ServiceError:
                    if (
                        name is None
                        and instance.previous_default is not None
                        and instance.spec.id != self._pool.default
                    ):
                        continue  # it was the default only while it was loading
                    raise
                assert instance.engine is not None  # not freed while leased
                yield instance.engine
                return

    def load(self, name: str) -> ModelStatus:
        """Start loading a model without waiting. See ``handlers.protocols.Models``."""
        slot = self._slot(name)
        with self._lock:
            self._pool.start(slot)
            return self._status(slot)

    def preload(self) -> Future[None]:
        """Start loading the default model without waiting; the future completes with the load."""
        with self._lock:
            return self._pool.start(self._slot(None)).loaded

    async def watch(self, name: str) -> AsyncGenerator[ModelStatus, None]:
        """Yield a model's status now and at each change until it is not loading. See ``handlers.protocols.Models``."""
        slot = self._slot(name)
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def notify() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and with it this generator
                loop.call_soon_threadsafe(changed.set)

        with self._lock:
            slot.watchers.add(notify)
        try:
            yielded = None
            while True:
                changed.clear()
                with self._lock:
                    status = self._status(slot)
                current = status.state, status.stage, status.progress, status.error
                if current != yielded:
                    yielded = current
                    yield status
                if status.state != "loading":
                    return
                await changed.wait()
        finally:
            with self._lock:
                slot.watchers.discard(notify)

    async def unload(self, name: str) -> ModelStatus:
        """Drain and unload a model, waiting up to ``wait_seconds``. See ``handlers.protocols.Models``."""
        slot = self._slot(name)
        with self._lock:
            if slot.current is not None:
                self._pool.unload(slot.current)
            draining = [other.unloaded for other in self._pool.instances if other.spec is slot.spec and other.draining]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._wait_seconds):
                for unloaded in draining:
                    await asyncio.shield(asyncio.wrap_future(unloaded))
        with self._lock:
            return self._status(slot)

    async def set_default(self, name: str) -> ModelStatus:
        """Load a model and make it the default one. See ``handlers.protocols.Models``."""
        slot = self._slot(name)
        with self._lease_instance(name, becoming_default=True) as instance:
            try:
                await self._wait_until_loaded(instance)
            finally:
                instance.becoming_default = False
            with self._lock:
                self._pool.default = slot.spec.id
        with self._lock:
            return self._status(slot)

    def status(self) -> list[ModelStatus]:
        """Return every model's status, the default first. See ``handlers.protocols.Models``."""
        with self._lock:
            return sorted(map(self._status, self._slots.values()), key=lambda status: not status.default)

    def find(self, name: str) -> ModelStatus:
        """Return one model's status. See ``handlers.protocols.Models``."""
        slot = self._slot(name)
        with self._lock:
            return self._status(slot)

    @property
    def ready(self) -> bool:
        """Whether the default model is loaded, its engine makes progress, and the service is not shutting down."""
        engine = self._default_engine()
        return not self.draining and engine is not None and engine.beating

    @property
    def alive(self) -> bool:
        """False once the default model's engine thread has stopped for good. See ``handlers.protocols.Models``."""
        engine = self._default_engine()
        return self.draining or engine is None or engine.alive

    def close(self, grace: float = 0) -> None:
        """Unload all models; requests still running after ``grace`` seconds fail with ``Draining``.

        Loads in progress are abandoned with their daemon threads.
        """
        self._pool.close(grace)

    def _default_engine(self) -> E | None:
        """Return the default model's engine; None if it is not loaded."""
        current = self._slots[self._pool.default].current
        return None if current is None else current.engine

    def _slot(self, name: str | None) -> ModelSlot[E]:
        """Return the slot of a served model (None: the default one).

        Raises:
            ModelNotFound: no model of that name is served.
        """
        slot = self._slots.get(self._pool.default if name is None else self._aliases.get(name, name))
        if slot is None:
            served = ", ".join([*self._slots, *self._aliases])
            raise ModelNotFound(f"no model {name!r} here; served: {served}", param="model")
        return slot

    @contextmanager
    def _lease_instance(self, name: str | None, *, becoming_default: bool = False) -> Iterator[ModelInstance[E]]:
        """Lease a model's current instance, or a new one; it may still be loading, and is not freed inside the block.

        Args:
            name: the model's id; None for the default one.
            becoming_default: whether the instance is to become the default.
        """
        with self._lock:
            slot = self._slot(name)
            engine = None if slot.current is None else slot.current.engine
            # If the default model's engine dies, /livez fails and the process is replaced; another model is reloaded.
            dead = engine is not None and not engine.alive and not self.draining
            if slot.current is not None and dead and slot.spec.id != self._pool.default:
                self._pool.unload(slot.current)
            instance = self._pool.start(slot)
            instance.leases += 1
            instance.becoming_default = instance.becoming_default or becoming_default
            slot.last_used = time.time()
        try:
            yield instance
        finally:
            with self._lock:
                instance.leases -= 1
                instance.last_used, slot.last_used = time.monotonic(), time.time()
                if instance.draining and not instance.leases:
                    self._lock.notify_all()

    async def _wait_until_loaded(self, instance: ModelInstance[E]) -> None:
        """Wait until an instance is loaded.

        Raises:
            ModelLoading: it is still loading after ``wait_seconds``.
            ServiceError: the load failed.
        """
        if instance.loaded.done():
            return instance.loaded.result()
        try:
            # Shielded, because a caller that gives up must not cancel the load that others wait for.
            async with asyncio.timeout(self._wait_seconds):
                await asyncio.shield(asyncio.wrap_future(instance.loaded))
        except TimeoutError:
            raise ModelLoading(
                f"{instance.spec.id} is still loading after {self._wait_seconds:g} s (MODEL_WAIT_SECONDS)",
                retry_after=5,
            ) from None

    def _status(self, slot: ModelSlot[E]) -> ModelStatus:
        """Return a model's status. Requires the lock."""
        instances = [other for other in self._pool.instances if other.spec is slot.spec]
        engine = None if slot.current is None else slot.current.engine
        error, state = slot.error, _state(slot, bool(instances))
        if engine is not None and not engine.alive:
            error, state = "its engine thread died too often and is not restarted", "failed"
        return ModelStatus(
            id=slot.spec.id,
            source=slot.spec.kind,
            state=state,
            default=slot.spec.id == self._pool.default,
            created=slot.created,
            stage=slot.stage,
            progress=slot.progress,
            error=error,
            info=None if engine is None else engine.info,
            pinned=slot.pinned,
            memory_bytes=sum(other.engine.memory_bytes for other in instances if other.engine is not None),
            reserved_bytes=slot.bytes,
            last_used=slot.last_used,
            running=sum(other.leases for other in instances),
            loads=slot.loads,
            load_failures=slot.load_failures,
            unloads=slot.unloads,
            evictions=slot.evictions,
            aliases=tuple(name for name, model in self._aliases.items() if model == slot.spec.id),
        )


def _state(slot: ModelSlot[E], in_memory: bool) -> ModelState:
    """Return a model's state; ``in_memory`` says whether any of its instances is in memory."""
    if slot.current is not None:
        return "loading" if slot.current.engine is None else "ready"
    if in_memory:
        return "draining"
    return "failed" if slot.error else "unloaded"
