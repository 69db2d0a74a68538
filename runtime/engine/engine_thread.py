"""The engine thread: takes requests from a queue, runs scheduler steps, and posts the tokens to the event loops."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from ctypes import c_int32

from runtime.engine.core_share import CoreShare
from runtime.engine.request import Request, StepOutput
from runtime.engine.runners import Runner
from runtime.engine.scheduler import Scheduler, StepPlan
from runtime.engine.sequence import Row, Sampled, Sequence, StepInterrupted
from runtime.engine.token_masks import TokenMasks
from runtime.errors import Draining, EngineRestarting, InternalError, ServiceError, TooManyRequests
from runtime.telemetry.model_metrics import ModelMetrics

_log = logging.getLogger("warmstart.engine")

HEARTBEAT_SECONDS = 1.0
"""Interval at which the idle thread of an engine updates its heartbeat."""
MAX_HEARTBEAT_AGE_SECONDS = 10.0
"""Maximum age of the last heartbeat of an engine that makes progress. A step takes tens of milliseconds, and seconds
only with a long prompt on a slow machine."""


class EngineThread:
    """Runs scheduler steps on a thread of its own, which starts at once. After a crash, ``FastEngine`` makes a new one.

    Args:
        name: the thread's name.
        runner: the model runner; only this thread may call it.
        scheduler: an empty scheduler; only this thread may call it.
        max_queue: maximum number of waiting requests, for interactive and background requests separately.
        metrics: the model's metrics.
        share: gives encoders in this process their turns between steps.
    """

    def __init__(
        self,
        name: str,
        runner: Runner,
        scheduler: Scheduler,
        *,
        max_queue: int,
        metrics: ModelMetrics,
        share: CoreShare | None = None,
    ) -> None:
        self.heartbeat = time.monotonic()
        self._runner = runner
        self._scheduler = scheduler
        self._max_queue = max_queue
        self._metrics = metrics
        self._share = share or CoreShare()
        self._masks = TokenMasks()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._interrupt = c_int32()  # 1 when an interactive request has come, for the step in progress
        self._inbox: deque[Request | Sequence] = deque()  # new requests and cancelled sequences, in order
        self._unfinished: set[Request] = set()  # unfinished requests
        self._waiting_interactive: set[Request] = set()  # live interactive requests that wait for a row or for blocks
        self._waiting_background: set[Request] = set()  # likewise for background requests
        self._owners: dict[Sequence, tuple[Request, int]] = {}  # unfinished sequence -> its request, its index there
        self._backlogged: list[Request] = []  # requests with a backlog
        self._max_request_rows = max(1, scheduler.max_rows // 2)  # maximum sequences of one request in the scheduler
        self._closing = self._aborting = self._ended = False
        self._reported = self._counters()  # counter values last reported to the metrics
        # Moving average of the seconds between two finished requests while busy, for Retry-After.
        self._finish_interval = 1.0
        self._last_finish = self.heartbeat  # time of the last finished request, or of the end of an idle period
        self.thread = threading.Thread(target=self._main, name=name, daemon=True)
        self.thread.start()

    # Called from event loop threads

    def check_admission(self, background: bool) -> None:
        """Raise an error if a request could not be admitted now.

        Args:
            background: whether it is a background request; the two kinds have separate queue limits.

        Raises:
            EngineRestarting: the thread crashed.
            Draining: the engine is closing.
            TooManyRequests: ``max_queue`` requests of this kind wait already.
        """
        if self._closing:
            raise Draining("the model is being unloaded", retry_after=1)
        if self._ended:
            raise EngineRestarting("the engine is restarting", retry_after=1)
        if len(self._waiting(background)) >= self._max_queue:
            raise TooManyRequests.of_queue(self._max_queue, self._finish_interval * self._max_queue)

    def submit(self, request: Request) -> None:
        """Queue a request for the thread.

        Raises:
            ServiceError: it cannot be admitted, see ``check_admission``.
        """
        with self._lock:
            self.check_admission(request.background)
            self._unfinished.add(request)
            self._waiting(request.background).add(request)
            self._inbox.append(request)
        if not request.background:
            self._interrupt.value = 1
        self._wake.set()

    def cancel_request(self, request: Request) -> None:
        """Cancel the unfinished sequences of a request whose stream was closed."""
        self._waiting(request.background).discard(request)  # frees its queue position at once
        self.cancel_sequences(request.sequences)

    def cancel_sequences(self, sequences: Iterable[Sequence]) -> None:
        """Cancel sequences; finished ones are ignored."""
        self._inbox.extend(sequences)
        self._wake.set()

    def close(self, *, abort: bool = False) -> None:
        """Stop admitting requests; the thread ends after the admitted ones, or after the current step if ``abort``."""
        with self._lock:
            self._closing = True
            self._aborting = self._aborting or abort
        self._wake.set()

    def fail_pending(self, error: Callable[[], ServiceError]) -> None:
        """Fail all pending requests and refuse new ones. Called after the thread has ended."""
        with self._lock:
            self._ended = True
            pending, self._unfinished = self._unfinished, set()
            self._waiting_interactive.clear()
            self._waiting_background.clear()
        for request in pending:
            request.fail(error())
        self._metrics.stats.busy(0, 0, 0, 0)

    def _waiting(self, background: bool) -> set[Request]:
        """Return the set of waiting background or interactive requests."""
        return self._waiting_background if background else self._waiting_interactive

    # Called on the engine thread

    def _main(self) -> None:
        try:
            self._run()
        except BaseException:
            _log.critical("the engine thread crashed", exc_info=True)

    def _run(self) -> None:
        """Run steps until the engine is closed and all requests have finished, or until the abort flag is set."""
        while not self._aborting:
            self.heartbeat = time.monotonic()
            self._wake.clear()
            self._interrupt.value = 0
            self._read_inbox()
            self._add_sequences()
            plan = self._scheduler.schedule()
            for sequence in plan.preempted:
                request, _ = self._owners[sequence]
                self._waiting(request.background).add(request)
            for sequence in plan.admitted:
                request, _ = self._owners[sequence]
                request.started = request.started or time.monotonic()
                self._waiting(request.background).discard(request)
            self._update_metrics()
            if plan.rows:
                self._step(plan)
                continue
            with self._lock:
                if self._closing and not self._unfinished:
                    return
            self._wake.wait(HEARTBEAT_SECONDS)

    def _read_inbox(self) -> None:
        """Register new requests from the inbox and cancel the sequences in it."""
        while self._inbox:
            item = self._inbox.popleft()
            if isinstance(item, Request):
                if not self._owners:
                    self._last_finish = self.heartbeat
                for index, sequence in enumerate(item.sequences):
                    self._owners[sequence] = (item, index)
                self._backlogged.append(item)
            elif item in self._owners:
                self._scheduler.cancel(item)
                self._remove(item)

    def _add_sequences(self) -> None:
        """Add sequences to the scheduler, up to a maximum per request, so that a request with thousands of sequences
        does not fill the scheduler's queue ahead of the others.
        """
        for request in [*self._backlogged]:
            while request.backlog and request.unfinished - len(request.backlog) < self._max_request_rows:
                self._scheduler.add(request.backlog.popleft())
            if not request.backlog:
                self._backlogged.remove(request)

    def _step(self, plan: StepPlan) -> None:
        """Run a planned step, apply its results and deliver the tokens."""
        if not plan.resumed:
            for source, target in plan.copies:
                self._runner.copy_block(source, target)
            self._metrics.step_tokens.observe(sum(len(row.token_ids) for row in plan.rows))
            self._masks.fill(plan.rows)
        try:
            outputs_of_rows = self._run_rows(plan)
        except StepInterrupted:
            self._scheduler.interrupted(plan)
            return
        results = self._scheduler.commit(plan.rows, outputs_of_rows)
        now = time.monotonic()
        outputs: dict[Request, StepOutput] = {}
        for result in results:
            owner = self._owners.get(result.sequence)
            if owner is None:  # another sequence of its request failed in this step
                continue
            request, index = owner
            if result.error is not None:
                self._fail_request(request, result.error)
                continue
            *others, last = result.tokens
            tokens = outputs.setdefault(request, StepOutput(now, [])).tokens
            tokens += [(index, sampled, None) for sampled in others]
            tokens.append((index, last, result.reason))
            if result.reason is not None:
                self._remove(result.sequence)
        self._post_outputs(outputs)

    def _run_rows(self, plan: StepPlan) -> list[list[Sampled] | ServiceError]:
        """Run a step. If it raises, run each row alone, so that only the faulty rows fail.

        Raises:
            StepInterrupted: an interactive request came.
        """
        try:
            with self._share.generating():
                interrupt = self._interrupt if plan.interruptible else None
                return self._runner.step(plan.rows, interrupt, resume=plan.resumed)
        except StepInterrupted:
            raise
        except Exception:
            _log.exception("a step failed; running each of its %d rows alone", len(plan.rows))
            return [self._run_alone(row) for row in plan.rows]

    def _run_alone(self, row: Row) -> list[Sampled] | ServiceError:
        try:
            return self._runner.step([row])[0]
        except Exception:
            request, _ = self._owners[row.sequence]
            request.context.run(_log.exception, "a generation failed")
            return InternalError("the generation failed; the log has the details")

    def _fail_request(self, request: Request, error: ServiceError) -> None:
        """End a request with an error and cancel its other sequences."""
        request.context.run(_log.error, "a generation failed: %s", error)
        for sequence in request.sequences:
            if sequence in self._owners:
                self._scheduler.cancel(sequence)
                self._remove(sequence)
        request.fail(error)

    def _remove(self, sequence: Sequence) -> None:
        """Unregister a finished sequence, and its request with the last one."""
        request, _ = self._owners.pop(sequence)
        request.unfinished -= 1
        if not request.unfinished:
            request.backlog.clear()  # not empty if the request was cancelled
            self._unfinished.discard(request)
            self._waiting(request.background).discard(request)
            now = time.monotonic()
            self._finish_interval += 0.1 * (now - self._last_finish - self._finish_interval)
            self._last_finish = now

    def _post_outputs(self, outputs: dict[Request, StepOutput]) -> None:
        """Post the step's outputs with one call per event loop: waking a loop costs more than passing the outputs."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Request, StepOutput]]] = {}
        for request, output in outputs.items():
            by_loop.setdefault(request.loop, []).append((request, output))
        for loop, items in by_loop.items():
            try:
                loop.call_soon_threadsafe(_put_outputs, items)
            except RuntimeError:  # the loop is closed, so nothing else will cancel the streams that ran on it
                for request, _ in items:
                    self.cancel_request(request)

    def _update_metrics(self) -> None:
        """Update the metrics' gauges and counters."""
        metrics, interactive, background = self._metrics, len(self._waiting_interactive), len(self._waiting_background)
        metrics.stats.busy(
            len(self._unfinished) - interactive - background, interactive, background, self._scheduler.kv_usage
        )
        values = self._counters()
        if values != self._reported:
            for counter, value, reported in zip(
                (metrics.drafted, metrics.accepted, metrics.preemptions), values, self._reported, strict=True
            ):
                counter.inc(value - reported)
            self._reported = values

    def _counters(self) -> tuple[int, int, int]:
        """The scheduler's counters, which outlive this thread: tokens drafted and accepted, and preemptions."""
        speculation = self._scheduler.speculation
        return speculation.drafted, speculation.accepted, self._scheduler.preemptions


def _put_outputs(items: list[tuple[Request, StepOutput]]) -> None:
    for request, output in items:
        request.outbox.put_nowait(output)
