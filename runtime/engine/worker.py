"""The engine thread: takes requests from a queue, runs scheduler steps, and posts the tokens to the event loops."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from runtime.engine.scheduler import Scheduler, StepPlan
from runtime.engine.sequence import Row, Runner, Sampled, Sequence
from runtime.errors import Draining, EngineRestarting, InternalError, ServiceError, TooManyRequests
from runtime.telemetry.model_metrics import ModelMetrics
from runtime.types import FinishReason

_log = logging.getLogger("warmstart.engine")

_TICK_SECONDS = 1.0  # interval at which an idle thread updates its heartbeat


@dataclass(slots=True)
class StepOutput:
    """The tokens that one step produced for one request.

    Args:
        now: monotonic time at which the step finished.
        tokens: (index of the sequence within the request, token, finish reason or None), in order.
    """

    now: float
    tokens: list[tuple[int, Sampled, FinishReason | None]]


@dataclass(slots=True, eq=False)
class Request:
    """The sequences of one request and the queue that receives their tokens.

    Args:
        sequences: the sequences in the caller's order; all are background (see ``Job``) or none is.
        loop: the caller's event loop.
        outbox: queue of step outputs, read on that loop; an error ends the stream.
        started: monotonic time at which the first step began; 0 before that.
        backlog: sequences not yet added to the scheduler, in order.
    """

    sequences: list[Sequence]
    loop: asyncio.AbstractEventLoop
    outbox: asyncio.Queue[StepOutput | ServiceError] = field(default_factory=asyncio.Queue)
    started: float = 0.0
    left: int = 0  # unfinished sequences
    backlog: deque[Sequence] = field(default_factory=deque)
    context: contextvars.Context = field(default_factory=contextvars.copy_context)  # for the request id in log lines

    def __post_init__(self) -> None:
        self.left = len(self.sequences)
        self.backlog.extend(self.sequences)

    @property
    def queued(self) -> bool:
        """Whether this is a background request, see ``Job``."""
        return any(sequence.queued for sequence in self.sequences)

    def fail(self, error: ServiceError) -> None:
        """End the request with an error. Any thread may call this; a closed event loop is ignored."""
        try:
            self.loop.call_soon_threadsafe(self.outbox.put_nowait, error)
        except RuntimeError:
            return


class EngineThread:
    """Runs scheduler steps on a thread of its own, which starts at once. After a crash, ``FastEngine`` makes a new one.

    Args:
        name: the thread's name.
        runner: the model runner; only this thread may call it.
        scheduler: an empty scheduler; only this thread may call it.
        max_queue: maximum number of waiting requests, for interactive and background requests separately.
        metrics: the model's metrics.
    """

    def __init__(
        self, name: str, runner: Runner, scheduler: Scheduler, *, max_queue: int, metrics: ModelMetrics
    ) -> None:
        self.beat = time.monotonic()
        self._runner = runner
        self._scheduler = scheduler
        self._max_queue = max_queue
        self._metrics = metrics
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._inbox: deque[Request | Sequence] = deque()  # new requests and cancelled sequences, in order
        self._live: set[Request] = set()  # unfinished requests
        self._online: set[Request] = set()  # live interactive requests that have not been scheduled yet
        self._queued: set[Request] = set()  # likewise for background requests, and preempted ones
        self._owners: dict[Sequence, tuple[Request, int]] = {}  # unfinished sequence -> its request, its index there
        self._feeding: list[Request] = []  # requests with a backlog
        self._share = max(1, scheduler.max_rows // 2)  # maximum sequences of one request in the scheduler
        self._closing = self._aborting = self._ended = False
        self._told = self._counts()  # counter values last reported to the metrics
        self._interval = 1.0  # moving average of seconds between two finished requests while busy, for Retry-After
        self._since = self.beat  # time of the last finished request, or of the first one after an idle period
        self.thread = threading.Thread(target=self._main, name=name, daemon=True)
        self.thread.start()

    # Called from event loop threads

    def check(self, queued: bool) -> None:
        """Raise an error if a request could not be admitted now.

        Args:
            queued: whether it is a background request; the two kinds have separate queue limits.

        Raises:
            EngineRestarting: the thread died.
            Draining: the engine is closing.
            TooManyRequests: ``max_queue`` requests of this kind wait already.
        """
        if self._closing:
            raise Draining("the model is being unloaded", retry_after=1)
        if self._ended:
            raise EngineRestarting("the engine is restarting", retry_after=1)
        if len(self._places(queued)) >= self._max_queue:
            raise TooManyRequests(
                f"{self._max_queue} requests are waiting already (MAX_QUEUE)",
                retry_after=max(1.0, self._interval * self._max_queue),
            )

    def submit(self, request: Request) -> None:
        """Queue a request for the thread.

        Raises:
            ServiceError: it cannot be admitted, see ``check``.
        """
        with self._lock:
            self.check(request.queued)
            self._live.add(request)
            self._places(request.queued).add(request)
            self._inbox.append(request)
        self._wake.set()

    def leave(self, request: Request) -> None:
        """Cancel the unfinished sequences of a request whose stream was closed."""
        self._places(request.queued).discard(request)  # frees its queue position at once
        self.cancel(request.sequences)

    def cancel(self, sequences: Iterable[Sequence]) -> None:
        """Cancel sequences; finished ones are ignored."""
        self._inbox.extend(sequences)
        self._wake.set()

    def close(self, *, abort: bool = False) -> None:
        """Stop admitting requests; the thread ends after the admitted ones, or after the current step if ``abort``."""
        with self._lock:
            self._closing = True
            self._aborting = self._aborting or abort
        self._wake.set()

    def bury(self, error: Callable[[], ServiceError]) -> None:
        """Fail all pending requests and refuse new ones. Called after the thread has ended."""
        with self._lock:
            self._ended = True
            left, self._live = self._live, set()
            self._online.clear()
            self._queued.clear()
        for request in left:
            request.fail(error())
        self._metrics.stats.busy(0, 0, 0, 0)

    def _places(self, queued: bool) -> set[Request]:
        """Return the set of waiting background or interactive requests."""
        return self._queued if queued else self._online

    # Called on the engine thread

    def _main(self) -> None:
        try:
            self._run()
        except BaseException:
            _log.critical("the engine's thread died", exc_info=True)

    def _run(self) -> None:
        """Run steps until the engine is closed and no request is left, or until the abort flag is set."""
        while not self._aborting:
            self.beat = time.monotonic()
            self._wake.clear()
            self._take()
            self._feed()
            plan = self._scheduler.schedule()
            for sequence in plan.preempted:
                self._queued.add(self._owners[sequence][0])
            for sequence in plan.admitted:
                request, _ = self._owners[sequence]
                request.started = request.started or time.monotonic()
                self._places(request.queued).discard(request)
            self._gauge()
            if plan.rows:
                self._step(plan)
                continue
            with self._lock:
                if self._closing and not self._live:
                    return
            self._wake.wait(_TICK_SECONDS)

    def _take(self) -> None:
        """Register new requests from the inbox and cancel the sequences in it."""
        while self._inbox:
            item = self._inbox.popleft()
            if isinstance(item, Request):
                if not self._owners:
                    self._since = self.beat
                for index, sequence in enumerate(item.sequences):
                    self._owners[sequence] = (item, index)
                self._feeding.append(item)
            elif item in self._owners:
                self._scheduler.cancel(item)
                self._forget(item)

    def _feed(self) -> None:
        """Add sequences to the scheduler up to each request's share, so that a request with thousands of sequences
        leaves rows to the others, whose sequences are queued in between.
        """
        for request in [*self._feeding]:
            while request.backlog and request.left - len(request.backlog) < self._share:
                self._scheduler.add(request.backlog.popleft())
            if not request.backlog:
                self._feeding.remove(request)

    def _step(self, plan: StepPlan) -> None:
        """Run a planned step, apply its results and deliver the tokens."""
        for source, target in plan.copies:
            self._runner.copy_block(source, target)
        outcomes = self._scheduler.commit(plan.rows, self._run_rows(plan.rows))
        now = time.monotonic()
        deliveries: dict[Request, StepOutput] = {}
        for outcome in outcomes:
            owner = self._owners.get(outcome.sequence)
            if owner is None:  # another sequence of its request failed in this step
                continue
            request, index = owner
            if outcome.error is not None:
                self._fail(request, outcome.error)
                continue
            *kept, last = outcome.kept
            tokens = deliveries.setdefault(request, StepOutput(now, [])).tokens
            tokens += [(index, sampled, None) for sampled in kept]
            tokens.append((index, last, outcome.reason))
            if outcome.reason is not None:
                self._forget(outcome.sequence)
        self._deliver(deliveries)

    def _run_rows(self, rows: list[Row]) -> list[list[Sampled] | ServiceError]:
        """Run a step. If it raises, run each row alone, so that only the faulty rows fail."""
        try:
            return self._runner.step(rows)
        except Exception:
            _log.exception("a step failed; each of its %d rows is run alone", len(rows))
            return [self._run_alone(row) for row in rows]

    def _run_alone(self, row: Row) -> list[Sampled] | ServiceError:
        try:
            return self._runner.step([row])[0]
        except Exception:
            request, _ = self._owners[row.sequence]
            request.context.run(_log.exception, "a generation failed")
            return InternalError("the generation failed; the log has the details")

    def _fail(self, request: Request, error: ServiceError) -> None:
        """End a request with an error and cancel its other sequences."""
        request.context.run(_log.error, "a generation ends: %s", error)
        for sequence in request.sequences:
            if sequence in self._owners:
                self._scheduler.cancel(sequence)
                self._forget(sequence)
        request.fail(error)

    def _forget(self, sequence: Sequence) -> None:
        """Unregister a finished sequence, and its request with the last one."""
        request, _ = self._owners.pop(sequence)
        request.left -= 1
        if not request.left:
            request.backlog.clear()  # not empty if the request was cancelled
            self._live.discard(request)
            self._places(request.queued).discard(request)
            now = time.monotonic()
            self._interval += 0.1 * (now - self._since - self._interval)
            self._since = now

    def _deliver(self, deliveries: dict[Request, StepOutput]) -> None:
        """Post the step's outputs with one call per event loop: waking a loop costs more than passing the outputs."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Request, StepOutput]]] = {}
        for request, delivery in deliveries.items():
            by_loop.setdefault(request.loop, []).append((request, delivery))
        for loop, items in by_loop.items():
            try:
                loop.call_soon_threadsafe(_hand_out, items)
            except RuntimeError:  # the loop is closed, so nothing else will cancel the streams that ran on it
                for request, _ in items:
                    self.leave(request)

    def _gauge(self) -> None:
        """Update the metrics' gauges and counters."""
        metrics, online, queued = self._metrics, len(self._online), len(self._queued)
        metrics.stats.busy(len(self._live) - online - queued, online, queued, self._scheduler.kv_usage)
        counts = self._counts()
        if counts != self._told:
            for counter, now, told in zip(
                (metrics.drafted, metrics.accepted, metrics.preemptions), counts, self._told, strict=True
            ):
                counter.inc(now - told)
            self._told = counts

    def _counts(self) -> tuple[int, int, int]:
        """The scheduler's counters, which outlive this thread: tokens drafted and accepted, and preemptions."""
        speculation = self._scheduler.speculation
        return speculation.drafted, speculation.accepted, self._scheduler.preemptions


def _hand_out(items: list[tuple[Request, StepOutput]]) -> None:
    for request, delivery in items:
        request.outbox.put_nowait(delivery)
