"""The thread of an encoder's engine: packs the texts of all requests into steps, and posts results to event loops."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.encoder_types import EncoderInput
from runtime.engine.encoder_queue import EncodeRequest, EncoderQueue
from runtime.engine.engine_thread import HEARTBEAT_SECONDS
from runtime.engine.pooling import EncoderHead
from runtime.engine.runners import EncoderRunner
from runtime.errors import Draining, EngineRestarting, InternalError, ServiceError, TooManyRequests
from runtime.telemetry.model_metrics import ModelMetrics

_log = logging.getLogger("warmstart.engine")

_SMALL_TEXT_COST = 4  # tokens that a text counts in addition to its own, for the work of its pooling

Result = NDArray[np.float32]


class EncoderThread:
    """Runs steps on a thread of its own, which starts at once.

    Args:
        name: the thread's name.
        runner: computes the states; only this thread may call it.
        head: computes results from states.
        step_tokens: maximum tokens of a step with more than one text.
        max_queue: maximum number of waiting requests, for interactive and background requests each.
        metrics: the model's metrics.
        gauges: whether the metrics' gauges of running and waiting requests are this thread's.
    """

    def __init__(
        self,
        name: str,
        runner: EncoderRunner,
        head: EncoderHead,
        *,
        step_tokens: int,
        max_queue: int,
        metrics: ModelMetrics,
        gauges: bool,
    ) -> None:
        self.heartbeat = time.monotonic()
        self._runner, self._head = runner, head
        self._step_tokens = min(step_tokens, runner.max_tokens)
        self._max_queue = max_queue
        self._metrics = metrics
        self._gauges = gauges
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._queue = EncoderQueue()  # guarded by the lock
        self._unfinished: set[EncodeRequest] = set()  # likewise
        self._closing = self._aborting = False
        self._seconds_per_request = 0.1  # moving average while busy, for Retry-After
        self.thread = threading.Thread(target=self._main, name=name, daemon=True)
        self.thread.start()

    # Called from event loop threads

    def check_admission(self, background: bool) -> None:
        """Raise an error if a request could not be admitted now.

        Args:
            background: whether it is a background request; the two kinds have separate queue limits.

        Raises:
            Draining: the engine is closing.
            EngineRestarting: the thread crashed.
            TooManyRequests: ``max_queue`` requests of this kind wait already.
        """
        with self._lock:
            self._check_admission(background)

    def _check_admission(self, background: bool) -> None:
        waiting = len(self._queue.background if background else self._queue.interactive)
        if self._closing:
            raise Draining("the model is being unloaded", retry_after=1)
        if not self.thread.is_alive():
            raise EngineRestarting("the engine has stopped", retry_after=1)
        if waiting >= self._max_queue:
            raise TooManyRequests.of_queue(self._max_queue, self._seconds_per_request * waiting)

    def submit(self, request: EncodeRequest) -> None:
        """Queue a request for the thread.

        Raises:
            ServiceError: it cannot be admitted, see ``check_admission``.
        """
        with self._lock:
            self._check_admission(request.background)
            self._queue.add(request, background=request.background)
            self._unfinished.add(request)
        self._wake.set()

    def forget(self, request: EncodeRequest) -> None:
        """Drop what is left of a request whose caller no longer waits; nothing if it has ended."""
        request.cancelled = True
        self._wake.set()

    def close(self, *, abort: bool = False) -> None:
        """Stop admitting requests, and end the thread when the admitted ones are finished.

        Args:
            abort: end it after the current step; unfinished requests fail with ``Draining``.
        """
        with self._lock:
            self._closing = True
            self._aborting = self._aborting or abort
        self._wake.set()

    # Called on the engine thread

    def _main(self) -> None:
        try:
            while self._step_or_wait():
                pass
        except BaseException:
            _log.critical("the engine thread crashed", exc_info=True)
        with self._lock:
            pending, self._unfinished = self._unfinished, set()
        for request in pending:
            request.complete(
                Draining("the service is shutting down", retry_after=1)
                if self._closing
                else EngineRestarting("the engine crashed while it processed this request; try again", retry_after=1)
            )
        if self._gauges:
            self._metrics.stats.busy(0, 0, 0, 0)

    def _step_or_wait(self) -> bool:
        """Run a step, or wait for work. Returns whether the thread goes on."""
        self.heartbeat = time.monotonic()
        self._wake.clear()
        with self._lock:
            if self._aborting or (self._closing and not self._unfinished):
                return False
            self._unfinished -= {request for request in self._unfinished if request.cancelled}
            self._queue.remove({request for request in self._queue if request.cancelled})
            taken = self._queue.take(self._runner.step_tokens(self._step_tokens), _SMALL_TEXT_COST)
            waiting, queued = len(self._queue.interactive), len(self._queue.background)
            if self._gauges:
                self._metrics.stats.busy(len(self._unfinished) - waiting - queued, waiting, queued, 0)
        if taken:
            self._step(taken)
        else:
            self._wake.wait(HEARTBEAT_SECONDS)
        return True

    def _step(self, taken: list[tuple[EncodeRequest, int]]) -> None:
        started = time.monotonic()
        for request, _ in taken:
            request.started = request.started or started
        texts = [request.inputs[index] for request, index in taken]
        self._metrics.step_tokens.observe(sum(len(text.ids) for text in texts))
        try:
            results: list[Any] = self.compute(texts)
        except Exception:
            _log.exception("a step failed; running each of its %d texts alone", len(texts))
            results = [self._compute_alone(request, index) for request, index in taken]
        for (request, index), result in zip(taken, results, strict=True):
            request.results[index] = result
            error = result if isinstance(result, ServiceError) else None
            if error is not None or (index == len(request.inputs) - 1):
                self._end(request, error)
        ends = sum(index == len(request.inputs) - 1 for request, index in taken)
        if ends:
            self._seconds_per_request += 0.1 * ((time.monotonic() - started) / ends - self._seconds_per_request)

    def _end(self, request: EncodeRequest, error: ServiceError | None) -> None:
        with self._lock:
            self._unfinished.discard(request)
        request.cancelled = True  # the rest of its texts, if it has failed
        request.complete(error)

    def compute(self, texts: Sequence[EncoderInput]) -> list[Result | ServiceError]:
        """Compute the results of a step's texts. Before any request, another thread may call this to warm up."""
        outputs = [self._head.outputs(len(text.ids), text.unpooled) for text in texts]
        results: list[Result | ServiceError] = []
        for text, states in zip(texts, self._runner.states(texts, outputs), strict=True):
            result = self._head(states, text.unpooled)
            if np.isfinite(result).all():
                results.append(result)
            else:
                results.append(InternalError("the model produced values that are not numbers"))
        return results

    def _compute_alone(self, request: EncodeRequest, index: int) -> Result | ServiceError:
        try:
            return self.compute([request.inputs[index]])[0]
        except Exception:
            request.context.run(_log.exception, "a text failed")
            return InternalError("the text could not be encoded; the log has the details")
