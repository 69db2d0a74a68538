"""Who is in memory: loads, the room they need, and the end of stays, each on threads of its own.

A stay (``ModelInstance``) that is to end takes no new holders and is freed when the last one has gone; who wants the
model in between waits for its next stay.
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
from runtime.model_pool.instance import E, ModelInstance, ModelSlot, to_unload

_log = logging.getLogger("warmstart.load")

LOAD_THREAD = "load-"
"""How the names of threads that load begin."""

Loader = Callable[[ModelSpec, Progress], E]
Measure = Callable[[ModelSpec, Progress], int]


class ModelPool(Generic[E]):
    """See the module.

    Args:
        slots: the models by their ids.
        default: id of the one that answers requests that name none.
        load: loads one; raises ``ServiceError`` if it cannot.
        measure: bytes that a model will take, asked before it is loaded.
        budget: bytes that all loaded models may take, asked likewise; None for no limit.
        idle_seconds: after how long an unused model is unloaded; 0 for never.

    ``lock`` guards this object and the slots. Its waiters are told of loads, of stays that ended and of the shutdown.
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
        self.stays: list[ModelInstance[E]] = []  # the older one of two of one model first
        self.lock = threading.Condition()
        self._slots = slots
        self._load = load
        self._measure = measure
        self._budget = budget
        self._idle_seconds = idle_seconds
        self._idle_timer: threading.Thread | None = None
        self._queue: deque[ModelInstance[E]] = (
            deque()
        )  # who waits for room; only the first may take it, so none starves

    def start(self, slot: ModelSlot[E]) -> ModelInstance[E]:
        """The stay that takes new requests; begun, if there is none. Call it with the lock held.

        Raises:
            Draining: the service is shutting down.
        """
        if self.draining:
            raise Draining("the service is shutting down", retry_after=1)
        if slot.current is None:
            slot.current = ModelInstance(slot.spec, slot.pinned)
            slot.error = None
            self.stays.append(slot.current)
            name = LOAD_THREAD + slot.spec.id
            threading.Thread(target=self._run, args=(slot, slot.current), name=name, daemon=True).start()
            if self._idle_seconds and self._idle_timer is None:
                self._idle_timer = threading.Thread(target=self._end_idle, name="idle-models", daemon=True)
                self._idle_timer.start()
            slot.tell()
        return slot.current

    def end(self, residence: ModelInstance[E]) -> None:
        """End a stay that takes new requests, once nobody holds it. Call it with the lock held; it does not wait."""
        slot = self._slots[residence.spec.id]
        residence.leaving, slot.current = True, None
        slot.unloads += 1
        slot.tell()
        threading.Thread(target=self._free, args=(residence,), name=f"unload-{slot.spec.id}", daemon=True).start()

    def close(self, grace: float) -> None:
        """Free everything; requests that still run after ``grace`` seconds end with ``Draining``.

        Loads under way are abandoned with their daemon threads.
        """
        with self.lock:
            self.draining = True
            self.lock.notify_all()
            engines = {stay: stay.engine for stay in self.stays if stay.engine is not None}
        threads = [threading.Thread(target=engine.close, args=(grace,)) for engine in engines.values()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for stay in engines:
            self._forget(stay)

    def _run(self, slot: ModelSlot[E], residence: ModelInstance[E]) -> None:
        """Load a model, on a thread of its own."""
        reporter = LoadProgress(slot.spec.id)

        def progress(stage: str, fraction: float | None) -> None:
            with self.lock:
                slot.stage, slot.progress = stage, fraction
                slot.tell()
            reporter(stage, fraction)

        engine: E | None = None
        failure: ServiceError = Draining("the service is shutting down", retry_after=1)
        try:
            self._make_room(slot, residence, progress)
            engine = self._load(slot.spec, progress)
        except Exception as error:
            if not isinstance(error, ServiceError):
                from runtime.model.load_errors import unavailable  # of no use to a start that goes well

                _log.exception("loading %s failed", slot.spec.id)
                error = unavailable(slot.spec, error)
            _log.error("%s is not loaded: %s", slot.spec.id, error)
            failure = error
        finally:
            reporter.close()
        with self.lock:
            slot.stage = slot.progress = None
            wanted = engine is not None and not self.draining
            if engine is not None and wanted:
                residence.engine, residence.used = engine, time.monotonic()
                residence.bytes = slot.bytes = engine.info.weights_bytes + engine.info.kv_bytes
                slot.loads += 1
                slot.tell()
                self.lock.notify_all()
        if engine is not None and wanted:
            info = engine.info
            _log.info("%s is ready: load %.1f s, warm-up %.1f s", slot.spec.id, info.load_seconds, info.warmup_seconds)
            residence.loaded.set_result(None)
            return
        if engine is not None:
            engine.close()
        # Forgotten before the waiters wake, so that the next call tries again.
        self._forget(residence, failure=failure)
        residence.loaded.set_exception(failure)

    def _make_room(self, slot: ModelSlot[E], residence: ModelInstance[E], progress: Progress) -> None:
        """Wait for the end of the model's former stay, and for room; unload others for it.

        Raises:
            ModelTooLarge: there can be none.
            Draining: the service is shutting down.
        """
        with self.lock:
            former = [stay for stay in self.stays[: self.stays.index(residence)] if stay.spec is slot.spec]
            if former:
                slot.stage = "waiting for requests from before it was unloaded"
                slot.tell()
            self.lock.wait_for(lambda: self.draining or all(stay.gone.done() for stay in former))
        need = self._measure(slot.spec, progress)
        budget = None if self._budget is None else self._budget()
        with self.lock:
            slot.bytes, self.budget_bytes = need, budget or 0
            self._queue.append(residence)
            try:
                while not self._has_room(slot, residence, need, budget):
                    slot.stage, slot.progress = "waiting for room", None
                    slot.tell()
                    self.lock.wait()
                residence.bytes = need
            finally:
                self._queue.remove(residence)
                self.lock.notify_all()

    def _has_room(self, slot: ModelSlot[E], residence: ModelInstance[E], need: int, budget: int | None) -> bool:
        if self.draining:
            raise Draining("the service is shutting down", retry_after=1)
        if budget is None:
            return True
        others = [stay for stay in self.stays if stay is not residence]
        leave = to_unload(slot.spec.id, need, budget, others)
        if self._queue[0] is not residence:
            return False
        for stay in leave:
            if residence.successor and stay.spec.id == self.default:
                # The two do not fit together: requests wait for the new default from now on.
                residence.replaced, self.default = self.default, slot.spec.id
            _log.info("%s is unloaded to make room for %s", stay.spec.id, slot.spec.id)
            self._slots[stay.spec.id].evictions += 1
            self.end(stay)
        return need + sum(stay.bytes for stay in others) <= budget

    def _free(self, residence: ModelInstance[E]) -> None:
        """Close the engine of a stay that is to end, once nobody holds it."""
        if residence.loaded.exception() is not None:
            return
        with self.lock:
            self.lock.wait_for(lambda: self.draining or not residence.holders)
            if self.draining:  # ``close`` does it
                return
            engine, residence.engine = residence.engine, None
        assert engine is not None
        from runtime.host import trim_memory  # a start has no time for ctypes

        try:
            engine.close()
        finally:
            del engine
            trim_memory()
            self._forget(residence)
        _log.info("%s is unloaded", residence.spec.id)

    def _forget(self, residence: ModelInstance[E], *, failure: ServiceError | None = None) -> None:
        """A stay is over, or its load has failed."""
        slot = self._slots[residence.spec.id]
        with self.lock:
            self.stays.remove(residence)
            if slot.current is residence:
                slot.current = None
            if failure is not None:
                slot.load_failures += 1
                slot.error = failure.message
                if residence.replaced is not None and self.default == slot.spec.id:
                    self.default = residence.replaced
            residence.gone.set_result(None)
            slot.tell()
            self.lock.notify_all()

    def _end_idle(self) -> None:
        """Unload what has been idle for too long, until the service shuts down."""
        with self.lock:
            while not self.draining:
                pause = self._idle_seconds
                for slot in self._slots.values():
                    current = slot.current
                    if current is None or current.engine is None or current.holders or slot.pinned:
                        continue
                    left = current.used + self._idle_seconds - time.monotonic()
                    if left > 0:
                        pause = min(pause, left)
                    else:
                        _log.info("%s is unloaded after %g s without a request", slot.spec.id, self._idle_seconds)
                        self.end(current)
                self.lock.wait(pause)
