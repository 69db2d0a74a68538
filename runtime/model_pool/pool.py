"""Loads models on background threads and evicts idle ones to stay within the memory budget.

An instance (``ModelInstance``) that is to be unloaded drains: it takes no new leases and is freed when the last one
ends. Requests that arrive meanwhile wait for the model's next instance.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Generic

from runtime.errors import Draining, ServiceError
from runtime.model.catalogue import ModelSpec
from runtime.model.progress import LoadProgress, Progress
from runtime.model_pool.instance import E, ModelInstance, ModelSlot, choose_evictions

_log = logging.getLogger("warmstart.load")

LOAD_THREAD = "load-"
"""Prefix of the names of loading threads."""

Loader = Callable[[ModelSpec, Progress], E]
Measure = Callable[[ModelSpec, Progress], int]


class ModelPool(Generic[E]):
    """Starts, evicts and frees model instances, each on its own thread.

    Args:
        slots: the served models by id.
        default: id of the model for requests that name none.
        load: loads a model; raises ``ServiceError`` on failure.
        measure: returns the bytes that a model will need; called before the model is loaded.
        budget: returns the bytes that all loaded models may use together; called before each load. None for no limit.
        idle_seconds: seconds without a request after which a model is unloaded; 0 for never.

    ``lock`` guards this object and the slots. Its waiters are notified when an instance is loaded or freed, and at
    shutdown.
    """

    def __init__(
        self,
        slots: Mapping[str, ModelSlot[E]],
        default: str,
        load: Loader[E],
        measure: Measure,
        budget: Callable[[], int] | None,
        idle_seconds: float,
    ) -> None:
        self.default = default
        self.draining = False
        self.budget_bytes = 0
        self.instances: list[ModelInstance[E]] = []  # of two instances of one model, the older comes first
        self.lock = threading.Condition()
        self._slots = slots
        self._load = load
        self._measure = measure
        self._budget = budget
        self._idle_seconds = idle_seconds
        self._idle_timer: threading.Thread | None = None
        # Instances waiting for memory. Only the first may reserve it, so that none starves.
        self._queue: deque[ModelInstance[E]] = deque()

    def start(self, slot: ModelSlot[E]) -> ModelInstance[E]:
        """Return the instance that takes new requests; start loading one if there is none. Requires the lock.

        Raises:
            Draining: the service is shutting down.
        """
        if self.draining:
            raise Draining("the service is shutting down", retry_after=1)
        if slot.current is None:
            slot.current = ModelInstance(slot.spec, slot.pinned)
            slot.error = None
            self.instances.append(slot.current)
            name = LOAD_THREAD + slot.spec.id
            threading.Thread(target=self._run, args=(slot, slot.current), name=name, daemon=True).start()
            if self._idle_seconds and self._idle_timer is None:
                self._idle_timer = threading.Thread(target=self._unload_idle, name="idle-models", daemon=True)
                self._idle_timer.start()
            slot.notify()
        return slot.current

    def unload(self, instance: ModelInstance[E]) -> None:
        """Drain a model's current instance and free it after its last lease. Requires the lock; does not wait."""
        slot = self._slots[instance.spec.id]
        instance.draining, slot.current = True, None
        slot.unloads += 1
        slot.notify()
        threading.Thread(target=self._free, args=(instance,), name=f"unload-{slot.spec.id}", daemon=True).start()

    def close(self, grace: float) -> None:
        """Free all instances; requests still running after ``grace`` seconds fail with ``Draining``.

        Loads in progress are abandoned with their daemon threads.
        """
        with self.lock:
            self.draining = True
            self.lock.notify_all()
            engines = {other: other.engine for other in self.instances if other.engine is not None}
        threads = [threading.Thread(target=engine.close, args=(grace,)) for engine in engines.values()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for other in engines:
            self._remove(other)

    def _run(self, slot: ModelSlot[E], instance: ModelInstance[E]) -> None:
        """Load a model into an instance; the body of a loading thread."""
        reporter = LoadProgress(slot.spec.id)

        def progress(stage: str, fraction: float | None) -> None:
            with self.lock:
                slot.stage, slot.progress = stage, fraction
                slot.notify()
            reporter(stage, fraction)

        engine: E | None = None
        failure: ServiceError = Draining("the service is shutting down", retry_after=1)
        try:
            self._wait_for_memory(slot, instance, progress)
            engine = self._load(slot.spec, progress)
        except Exception as error:
            if not isinstance(error, ServiceError):
                from runtime.model.load_errors import unavailable  # a successful start does not need it

                _log.exception("loading %s failed", slot.spec.id)
                error = unavailable(slot.spec, error)
            _log.error("%s is not loaded: %s", slot.spec.id, error)
            failure = error
        finally:
            reporter.close()
        with self.lock:
            slot.stage = slot.progress = None
            kept = engine is not None and not self.draining
            if engine is not None and kept:
                instance.engine, instance.last_used = engine, time.monotonic()
                instance.bytes = slot.bytes = engine.info.weights_bytes + engine.info.kv_bytes
                slot.loads += 1
                slot.notify()
                self.lock.notify_all()
        if engine is not None and kept:
            info = engine.info
            _log.info("%s is ready: load %.1f s, warm-up %.1f s", slot.spec.id, info.load_seconds, info.warmup_seconds)
            instance.loaded.set_result(None)
            return
        if engine is not None:
            engine.close()
        # Removed before the waiters wake, so that the next call tries to load again.
        self._remove(instance, failure=failure)
        instance.loaded.set_exception(failure)

    def _wait_for_memory(self, slot: ModelSlot[E], instance: ModelInstance[E], progress: Progress) -> None:
        """Wait until the model's previous instances are freed, then reserve memory, evicting other models if needed.

        Raises:
            ModelTooLarge: the model cannot fit the budget.
            Draining: the service is shutting down.
        """
        with self.lock:
            previous = [other for other in self.instances[: self.instances.index(instance)] if other.spec is slot.spec]
            if previous:
                slot.stage = "waiting for requests from before it was unloaded"
                slot.notify()
            self.lock.wait_for(lambda: self.draining or all(other.unloaded.done() for other in previous))
        need = self._measure(slot.spec, progress)
        budget = None if self._budget is None else self._budget()
        with self.lock:
            slot.bytes, self.budget_bytes = need, budget or 0
            self._queue.append(instance)
            try:
                while not self._fits(slot, instance, need, budget):
                    slot.stage, slot.progress = "waiting for memory", None
                    slot.notify()
                    self.lock.wait()
                instance.bytes = need
            finally:
                self._queue.remove(instance)
                self.lock.notify_all()

    def _fits(self, slot: ModelSlot[E], instance: ModelInstance[E], need: int, budget: int | None) -> bool:
        """Return whether an instance fits the budget now; if it is first in the queue, evict others until it does."""
        if self.draining:
            raise Draining("the service is shutting down", retry_after=1)
        if budget is None:
            return True
        others = [other for other in self.instances if other is not instance]
        evicted = choose_evictions(slot.spec.id, need, budget, others)
        if self._queue[0] is not instance:
            return False
        for other in evicted:
            if instance.becoming_default and other.spec.id == self.default:
                # The two do not fit together, so requests without a model name wait for the new default from now on.
                instance.previous_default, self.default = self.default, slot.spec.id
            _log.info("%s is unloaded to free memory for %s", other.spec.id, slot.spec.id)
            self._slots[other.spec.id].evictions += 1
            self.unload(other)
        return need + sum(other.bytes for other in others) <= budget

    def _free(self, instance: ModelInstance[E]) -> None:
        """Close a draining instance's engine after its last lease; the body of an unloading thread."""
        if instance.loaded.exception() is not None:
            return
        with self.lock:
            self.lock.wait_for(lambda: self.draining or not instance.leases)
            if self.draining:  # ``close`` frees it
                return
            engine, instance.engine = instance.engine, None
        assert engine is not None
        from runtime.host import trim_memory  # imports ctypes, which would slow the start

        try:
            engine.close()
        finally:
            del engine
            trim_memory()
            self._remove(instance)
        _log.info("%s is unloaded", instance.spec.id)

    def _remove(self, instance: ModelInstance[E], *, failure: ServiceError | None = None) -> None:
        """Remove an instance that was freed or that failed to load, and wake the waiters."""
        slot = self._slots[instance.spec.id]
        with self.lock:
            self.instances.remove(instance)
            if slot.current is instance:
                slot.current = None
            if failure is not None:
                slot.load_failures += 1
                slot.error = failure.message
                if instance.previous_default is not None and self.default == slot.spec.id:
                    self.default = instance.previous_default
            instance.unloaded.set_result(None)
            slot.notify()
            self.lock.notify_all()

    def _unload_idle(self) -> None:
        """Unload models that were idle for ``idle_seconds``, until shutdown; the body of the idle thread."""
        with self.lock:
            while not self.draining:
                pause = self._idle_seconds
                for slot in self._slots.values():
                    current = slot.current
                    if current is None or current.engine is None or current.leases or slot.pinned:
                        continue
                    remaining = current.last_used + self._idle_seconds - time.monotonic()
                    if remaining > 0:
                        pause = min(pause, remaining)
                    else:
                        _log.info("%s is unloaded after %g s without a request", slot.spec.id, self._idle_seconds)
                        self.unload(current)
                self.lock.wait(pause)
